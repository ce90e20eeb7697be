"""Classes and probabilities for an area: two mosaics (before, after) and a trained experiment in, rasters and maps out.

    python -m lib.maps --config configs/xview2.yaml --pre before/ --post after.tif --out area
    python -m lib.maps --inputs trained --config configs/xview2.yaml --pre https://.../a.tif --post b.tif --out area

Each side is any number of files, folders, VRTs or addresses of COGs, in any coordinate systems and pixel sizes. The
networks, weights and decode settings are those of the experiment's workdir, or of --inputs. The same command goes on
where it was interrupted. `python -m lib.maps export` makes vectors of a submission instead.
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import yaml
from rasterio.crs import CRS
from rasterio.errors import CRSError

from lib.errors import ConfigError
from lib.maps import outputs, page, sources
from lib.run import cli


def parser():
    """Return the flags of the command."""
    flags = cli.experiment_flags(__doc__)
    for name in ("pre", "post"):
        flags.add_argument(f"--{name}", nargs="+", metavar="FILE", help=f"what shows the image {name}: files, folders, "
                           "addresses; of files that overlap the first one with data is taken")  # fmt: skip
    flags.add_argument("--image", nargs="+", action="append", default=[], metavar=("NAME", "FILE"),
                       help="the same for any other image of a competition, by its name")  # fmt: skip
    flags.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the results go")
    flags.add_argument("--aoi", metavar="FILE|WKT", help="polygons to keep to (GeoJSON, GeoPackage, or WKT in degrees)")
    flags.add_argument("--crs", help="coordinate system of the result, as EPSG:32615 (default: the images' own in "
                       "metres, else the UTM zone)")  # fmt: skip
    flags.add_argument("--pixel-size", type=float, metavar="METRES", help="side of a pixel of the result (default: "
                       "that of the scenes the networks were trained on, else of the last image)")  # fmt: skip
    flags.add_argument("--resampling", default="bilinear", help=f"one of {', '.join(sources.RESAMPLING)}")
    flags.add_argument("--register", action="store_true", help="move later images onto the first, as the measured "
                       "shift says")  # fmt: skip
    flags.add_argument("--window", type=int, default=2048, metavar="PIXELS", help="sides of what is held in memory at "
                       "once (default: 2048); changes no pixel of the result")  # fmt: skip
    flags.add_argument("--one-band", action="store_true", help="take an image of one band for grey")
    flags.add_argument("--event", default="", help="what the area is called; of a domain that the experiment knows, "
                       "its decode settings hold")  # fmt: skip
    flags.add_argument("--decode", action="append", default=[], metavar="SETTING=VALUE",
                       help="a decode setting in place of the chosen one")  # fmt: skip
    flags.add_argument("--footprints", type=Path, metavar="FILE", help="polygons that get classes, instead of the "
                       "objects that the networks find (GeoJSON, GeoPackage, GeoParquet)")  # fmt: skip
    outputs.add_flags(flags)
    flags.add_argument("--rasters", action="store_true", help="write rasters alone: no vectors, no page")
    flags.add_argument("--force", action="store_true", help="make everything anew")
    return flags


@cli.exits
def main(argv=None):
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv[:1] == ["export"]:
        from lib.maps import export

        return export.main(argv[1:])
    args = parser().parse_args(argv)
    images = {name: given for name in ("pre", "post") if (given := getattr(args, name))}
    images |= {name: given for name, *given in args.image}
    if not images:
        raise ConfigError("--pre, --post: expected the images of an area, got none")
    options = outputs.options_of(args)
    if not args.rasters:
        outputs.require_libraries()
    from lib.maps import area, layout, plan  # here, since they import torch

    request = plan.Request(
        images=images,
        out=args.out,
        limit=layout.read_limit(args.aoi) if args.aoi else None,
        crs=read_crs(args.crs) if args.crs else None,
        pixel_size=args.pixel_size,
        resampling=args.resampling,
        register=args.register,
        window=args.window,
        one_band=args.one_band,
        event=args.event,
        decode=dict(setting(text) for text in args.decode),
        force=args.force,
    )
    planned = plan.prepare(cli.open_run(args, brings_scenes=True), request)
    for note in planned.notes:
        cli.say(f"  {note}")
    made = area.make(planned)
    cli.say(f"{args.out / made.answer}: class numbers; probabilities in {', '.join(made.levels.values())}")
    if not args.rasters:
        pictures = area.previews(planned.job.sides, page.preview_size(made.grid))
        for line in outputs.write_all(args.out, args.footprints, pictures, options):
            cli.say(line)


def read_crs(text):
    """Return the CRS that a text names. Raises ConfigError."""
    try:
        return CRS.from_user_input(int(text) if text.isdigit() else text)
    except (CRSError, ValueError) as error:
        raise ConfigError(f"--crs {text}: expected a coordinate system, as EPSG:32615, got {error}") from error


def setting(text):
    """Return name and value of SETTING=VALUE. Raises ConfigError."""
    name, sign, value = text.partition("=")
    if not (name and sign):
        raise ConfigError(f"--decode {text}: expected SETTING=VALUE")
    return name, yaml.safe_load(value)


if __name__ == "__main__":
    sys.exit(main())
