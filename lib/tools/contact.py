"""Contact sheets: every labelled scene as a thumbnail with its id, domain and flags, and a list of what is broken.

Look at every sample before the first experiment. Of a scene its first image is shown, of a video the middle frame;
``--truth`` paints the truth over it. Written to ``<workdir>/<experiment>/report/contact/``.

    python -m lib.tools.contact --config configs/xview2_cpu.yaml
"""

import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from lib.competitions.contract import Competition, Finding, Scene, summarize
from lib.errors import DataError
from lib.files import write_bytes
from lib.run import cli
from lib.tools import table

SIDE, COLUMNS, ROWS = 160, 8, 6
"""Pixels of a thumbnail's longer side, and thumbnails on a page."""
LINE = 14
"""Height of a line of text in pixels."""
LINES = 3
GAP = 6
PAPER, INK, FAULT = (250, 250, 250), (20, 20, 20), (220, 40, 40)
FONT, SIZE = cv2.FONT_HERSHEY_SIMPLEX, 0.38


def still(pixels: np.ndarray) -> np.ndarray:
    """Return the middle one of frames (F, H, W, 3), or the image (H, W, 3) itself."""
    return pixels[len(pixels) // 2] if pixels.ndim == 4 else pixels


def thumbnail(image: np.ndarray, side: int = SIDE) -> np.ndarray:
    """Fit an image (H, W, 3) uint8 into (side, side, 3), its shape kept, on paper; small images are enlarged."""
    height, width = image.shape[:2]
    factor = side / max(height, width)
    size = max(1, round(width * factor)), max(1, round(height * factor))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_NEAREST)
    square = np.full((side, side, 3), PAPER, np.uint8)
    top, left = (side - size[1]) // 2, (side - size[0]) // 2
    square[top : top + size[1], left : left + size[0]] = small
    return square


def captions(competition: Competition, scene: Scene) -> list[str]:
    """Return what stands under a scene: its id, its domain, the flags it has."""
    flags = ", ".join(name for name, there in competition.strata(scene).items() if there)
    return [scene.id, scene.domain, flags]


def cell(picture: np.ndarray | None, lines: Sequence[str], side: int = SIDE) -> np.ndarray:
    """Return a thumbnail over its lines of text, (side + LINES * LINE, side, 3) uint8; without a picture, a cross.

    Text is cut in its middle to fit; letters other than ASCII become question marks.
    """
    page = np.full((side + LINES * LINE, side, 3), PAPER, np.uint8)
    if picture is None:
        cv2.line(page, (0, 0), (side - 1, side - 1), FAULT, 2)
        cv2.line(page, (0, side - 1), (side - 1, 0), FAULT, 2)
    else:
        page[:side] = thumbnail(picture, side)
    for number, line in enumerate(lines[:LINES], 1):
        place = (1, side + number * LINE - 4)
        cv2.putText(page, _fitting(line, side), place, FONT, SIZE, INK, 1, cv2.LINE_AA)
    return page


def _fitting(text: str, width: int) -> str:
    """Leave out the middle of a text that is wider than ``width`` pixels."""
    text = text.encode("ascii", "replace").decode()
    keep, short = len(text), text
    while keep > 2 and cv2.getTextSize(short, FONT, SIZE, 1)[0][0] > width:
        keep -= 1
        short = f"{text[: (keep + 1) // 2]}..{text[len(text) - keep // 2 :]}"
    return short


def page(cells: Sequence[np.ndarray], columns: int = COLUMNS) -> np.ndarray:
    """Lay cells of one size side by side, row by row: (H, W, 3) uint8. Rows are only as many as needed."""
    height, width = cells[0].shape[:2]
    rows = -(-len(cells) // columns)
    sheet = np.full((rows * (height + GAP) + GAP, columns * (width + GAP) + GAP, 3), PAPER, np.uint8)
    for number, one in enumerate(cells):
        top, left = (GAP + at * (step + GAP) for at, step in zip(divmod(number, columns), (height, width)))
        sheet[top : top + height, left : left + width] = one
    return sheet


def pictures(competition: Competition, scenes: Sequence[Scene], truth: bool, side: int) -> Iterator[np.ndarray]:
    """Yield the cell of every scene in order; a scene that cannot be read has a cross and the reason."""

    def one(scene: Scene) -> np.ndarray:
        try:
            return cell(look(competition, scene, truth), captions(competition, scene), side)
        except DataError as error:
            return cell(None, [scene.id, scene.domain, str(error)], side)

    with ThreadPoolExecutor(max_workers=2) as pool:
        yield from tqdm(pool.map(one, scenes), "contact", total=len(scenes), leave=False, disable=None)


def look(competition: Competition, scene: Scene, truth: bool) -> np.ndarray:
    """Return the picture of a scene, (H, W, 3) uint8: its first image, or its truth as the report would show it."""
    if not truth:
        return still(competition.read(scene, competition.images[0]))
    panels = competition.panels(scene, competition.truth(scene))
    return dict(panels).get("truth", panels[-1][1])  # where the report shows no truth, the answer is the truth here


def pages(cells: Iterable[np.ndarray], columns: int = COLUMNS, rows: int = ROWS) -> Iterator[np.ndarray]:
    """Yield full pages of cells, and one with the rest."""
    waiting: list[np.ndarray] = []
    for one in cells:
        waiting.append(one)
        if len(waiting) == columns * rows:
            yield page(waiting, columns)
            waiting = []
    if waiting:
        yield page(waiting, columns)


def write(competition: Competition, folder: Path, truth: bool = False, side: int = SIDE, columns: int = COLUMNS,
          rows: int = ROWS) -> tuple[list[Path], list[Finding]]:  # fmt: skip
    """Write contact_001.jpg ... and findings.csv into ``folder``; returns the pages and what was found broken.

    Pages of an earlier, longer contact sheet are removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    cells = pictures(competition, competition.scenes("train"), truth, side)
    for number, image in enumerate(pages(cells, columns, rows), 1):
        written.append(folder / f"contact_{number:03d}.jpg")
        _, content = cv2.imencode(".jpg", image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])
        write_bytes(written[-1], content.tobytes())
    for old in set(folder.glob("contact_*.jpg")) - set(written):
        old.unlink()
    findings = competition.inspect()
    table.write_csv(folder / "findings.csv", [vars(f) for f in findings], list(Finding.__dataclass_fields__))
    return written, findings


@cli.exits
def main(argv=None):
    flags = cli.parser(__doc__)
    flags.add_argument("--truth", action="store_true", help="show the truth over the image")
    flags.add_argument("--side", type=int, default=SIDE, help=f"pixels of a thumbnail (default: {SIDE})")
    flags.add_argument("--columns", type=int, default=COLUMNS, help=f"thumbnails side by side (default: {COLUMNS})")
    flags.add_argument("--rows", type=int, default=ROWS, help=f"rows on a page (default: {ROWS})")
    args = flags.parse_args(argv)
    run = cli.open_run(args)
    folder = run.store.root / "report" / "contact"
    written, findings = write(run.competition, folder, args.truth, args.side, args.columns, args.rows)
    for line in summarize(findings, names=20):
        cli.say(f"  {line}")
    cli.say(f"{len(written)} pages, {len(findings)} findings: {folder}")


if __name__ == "__main__":
    sys.exit(main())
