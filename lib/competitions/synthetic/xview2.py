"""Draw satellite-like tiles before and after a disaster, as xBD ships them: the embedded demo.

``train/``, ``tier3/`` and ``test/`` with ``images/`` and (but for test) ``labels/``. Three disasters leave different
marks, but the cue for a class is the same: *minor-damage* is a roof with a patch (tarpaulin, hole, scorch),
*major-damage* has lost about half its roof, of *destroyed* only rubble within the footprint is left. There are also
scenes without buildings, row houses that touch, buildings cut by the tile's border, buildings under cloud
(``un-classified``), neighbouring tiles, and one disaster as GeoTIFF.

Longer than other modules because a tile is one drawing, told in the order of its layers with every layer's numbers
beside it; nothing in it is of use elsewhere. Coordinates are (x, y) pixels, x to the right, y down; pictures are
(H, W, 3) uint8 RGB; fields are (H, W) float32. One pixel is ``GSD`` metres at any tile size: a smaller tile shows less,
not smaller houses.
"""

import json
import math
import uuid
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import rasterio
import shapely
from numpy.typing import ArrayLike
from rasterio.transform import Affine
from shapely.geometry import Polygon

from lib.scenes.raster import write_png

GSD = 0.5
METRES_PER_DEGREE = 111_320.0
TILES_PER_ROW = 3
SUBTYPES = ("no-damage", "minor-damage", "major-damage", "destroyed")
UNCLASSIFIED = "un-classified"


# ---- xView2: which scenes -------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Event:
    """One invented disaster: where and when, what its land looks like, and what its ruins are made of."""

    name: str
    kind: str
    tier: str
    suffix: str
    corner: tuple[float, float]
    """(longitude, latitude) of the north-west corner of its first tile."""
    dates: tuple[str, str]
    land: tuple[tuple[int, int, int], ...]
    """Ground colours from the lowest to the highest value of the terrain field."""
    tree: tuple[int, int, int]
    trees: int
    """Trees per 1024 x 1024 pixels."""
    built: float
    """Share of building lots with a building."""
    rubble: tuple[tuple[int, int, int], ...]
    patch: tuple[tuple[int, int, int], ...]
    """Colours of what covers a roof with minor damage."""


EVENTS = (
    Event(
        "synthetic-tornado",
        "wind",
        "train",
        "png",
        (-97.51, 35.34),
        ("2019-04-02", "2019-05-21"),
        land=((84, 80, 64), (72, 86, 56), (74, 90, 56), (90, 102, 66), (130, 120, 94)),
        tree=(40, 58, 36),
        trees=900,
        built=0.78,
        rubble=((192, 178, 160), (164, 128, 100), (138, 100, 76), (118, 106, 92), (74, 64, 56), (206, 202, 196)),
        patch=((58, 86, 178), (70, 104, 200), (182, 156, 122)),
    ),
    Event(
        "synthetic-flood",
        "flooding",
        "train",
        "png",
        (-78.02, 34.62),
        ("2018-03-11", "2018-09-20"),
        land=((62, 74, 48), (58, 80, 46), (76, 94, 56), (106, 102, 74), (126, 108, 84)),
        tree=(34, 54, 34),
        trees=800,
        built=0.55,
        rubble=((150, 132, 108), (120, 100, 78), (92, 80, 64), (186, 176, 158), (104, 104, 98)),
        patch=((52, 92, 186), (76, 110, 196), (120, 98, 70)),
    ),
    Event(
        "synthetic-wildfire",
        "fire",
        "tier3",
        "tif",
        (-121.62, 39.76),
        ("2018-07-30", "2018-11-16"),
        land=((94, 90, 66), (116, 106, 78), (134, 120, 92), (100, 102, 68), (150, 136, 108)),
        tree=(46, 57, 38),
        trees=1100,
        built=0.66,
        rubble=((164, 162, 158), (122, 119, 116), (92, 87, 84), (62, 58, 56), (138, 114, 96)),
        patch=((48, 42, 38), (66, 54, 46), (88, 78, 70)),
    ),
)


def write(root: Path, *, scenes: int, test_scenes: int, size: int, seed: int) -> None:
    """Write the xBD-like set into the existing folder ``root``; scene k does not depend on how many there are."""
    for split in ("train", "tier3", "test"):
        (root / split / "images").mkdir(parents=True)
    for split in ("train", "tier3"):
        (root / split / "labels").mkdir()
    for split, count in (("train", scenes), ("test", test_scenes)):
        for ordinal in range(count):
            event = EVENTS[ordinal % len(EVENTS)]
            # As in xBD one numbering runs through an event and test tiles lie between the labelled ones.
            turn = ordinal // len(EVENTS)
            number = turn // 3 * 4 + turn % 3 if split == "train" else turn * 4 + 3
            _write_scene(root, event, split, ordinal, number, size, seed)


def _write_scene(root: Path, event: Event, split: str, ordinal: int, number: int, size: int, seed: int) -> None:
    """Write the two pictures of a scene and, for a labelled one, its two JSON files."""
    name = f"{event.name}_{number:08d}"
    plan = _plan(np.random.default_rng([seed, zlib.crc32(name.encode())]), event, ordinal, size)
    transform = _transform(event, number, size)
    folder = root / (event.tier if split == "train" else split)
    for moment, picture in zip(("pre", "post"), _draw(plan), strict=True):
        stem = f"{name}_{moment}_disaster"
        _write_picture(folder / "images" / f"{stem}.{event.suffix}", picture, transform)
        if split == "train":
            label = _label(plan, moment, transform, f"{stem}.{event.suffix}")
            (folder / "labels" / f"{stem}.json").write_text(json.dumps(label), encoding="utf-8")


def _transform(event: Event, number: int, size: int) -> Affine:
    """Return pixel (x, y) -> (longitude, latitude); tiles of an event lie side by side, north up."""
    row, column = divmod(number, TILES_PER_ROW)
    lng, lat = event.corner
    down = GSD / METRES_PER_DEGREE
    right = down / np.cos(np.radians(lat))
    return Affine(right, 0.0, lng + column * size * right, 0.0, -down, lat - row * size * down)


def _write_picture(path: Path, picture: np.ndarray, transform: Affine) -> None:
    if path.suffix == ".png":
        write_png(path, picture)
        return
    size = picture.shape[0]
    with rasterio.open(
        path, "w", driver="GTiff", width=size, height=size, count=3, dtype="uint8", crs="EPSG:4326",
        transform=transform, photometric="RGB", compress="deflate", zlevel=1, predictor=2,
    ) as file:  # fmt: skip
        file.write(picture.transpose(2, 0, 1))


def _label(plan: "Plan", moment: str, transform: Affine, file_name: str) -> dict:
    """Return what xBD's label file of one picture holds; only the post picture's buildings have a subtype."""
    features: dict[str, list] = {"lng_lat": [], "xy": []}
    for house in plan.houses:
        properties = {"feature_type": "building", "uid": house.uid}
        if moment == "post":
            properties = {"feature_type": "building", "subtype": house.subtype, "uid": house.uid}
        outline = np.array(house.footprint.exterior.coords)  # (V, 2)
        place = outline * (transform.a, transform.e) + (transform.c, transform.f)  # (V, 2)
        for form, points in (("lng_lat", place), ("xy", outline)):
            features[form].append({"properties": dict(properties), "wkt": Polygon(points).wkt})
    after = moment == "post"
    light = plan.lights[after]
    metadata = {
        "sensor": "WORLDVIEW02", "provider_asset_type": "WORLDVIEW02", "gsd": 4 * GSD,
        "capture_date": f"{plan.event.dates[after]}T17:{plan.minute:02d}:00.000Z",
        "off_nadir_angle": 15.0, "pan_resolution": GSD,
        "sun_azimuth": float(np.degrees(np.arctan2(light.sun[0], -light.sun[1])) % 360), "sun_elevation": 50.0,
        "target_azimuth": 120.0, "disaster": plan.event.name, "disaster_type": plan.event.kind,
        "catalog_id": f"{zlib.crc32(plan.event.name.encode()) + after:016X}",
        "original_width": plan.size, "original_height": plan.size, "width": plan.size, "height": plan.size,
        "id": f"{zlib.crc32(file_name.encode()):08x}", "img_name": file_name,
    }  # fmt: skip
    return {"features": features, "metadata": metadata}


# ---- xView2: what stands where --------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Light:
    """One overpass: ``sun`` is the unit vector towards the sun on the ground, ``gain`` is per channel."""

    sun: np.ndarray
    gain: np.ndarray
    haze: float


@dataclass(frozen=True)
class Streets:
    """A bent street grid: streets at v = 0, BLOCK, 2 BLOCK ..., cross streets at u = 0, CELL, 2 CELL ..."""

    angle: float
    bend: float
    wave: float
    start: tuple[float, float]

    def from_image(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Turn pixels into (u, v) along and across the streets."""
        c, s = math.cos(self.angle), math.sin(self.angle)
        u = c * x + s * y + self.start[0]
        return u, c * y - s * x + self.bend * np.sin(u / self.wave) + self.start[1]

    def to_image(self, u: float, v: float) -> np.ndarray:
        """Turn (u, v) into a pixel (x, y); undoes ``from_image``."""
        u0, v0 = u - self.start[0], v - self.bend * math.sin(u / self.wave) - self.start[1]
        c, s = math.cos(self.angle), math.sin(self.angle)
        return np.array([c * u0 - s * v0, s * u0 + c * v0])

    def direction(self, u: float) -> float:
        """Return the angle of a street at ``u``, in radians from +x towards +y."""
        return self.angle - math.atan(self.bend / self.wave * math.cos(u / self.wave))


BLOCK, CELL, LOT, SETBACK = 156, 480, 60, 45
ROAD, SIDEWALK = 8.0, 11.0
"""Half widths of a street without and with its kerb, in pixels."""


@dataclass
class House:
    """A building: its outline, roof faces as (polygon, normal) and frame (centre, unit vectors along and back)."""

    outline: np.ndarray
    faces: list[tuple[np.ndarray, np.ndarray]]
    colour: np.ndarray
    height: float
    frame: tuple[np.ndarray, np.ndarray, np.ndarray]
    half: tuple[float, float]
    footprint: Polygon
    uid: str
    subtype: str = SUBTYPES[0]

    def place(self, points: ArrayLike) -> np.ndarray:
        """Turn points (along, back) from the centre into pixels: (V, 2)."""
        return _placed(self.frame, points)


@dataclass
class Plan:
    """All of one scene that both pictures share; ``harm`` (H, W) is 0 where nothing happened, 1 at the worst."""

    event: Event
    size: int
    rng: np.random.Generator
    streets: Streets
    houses: list[House]
    harm: np.ndarray
    trees: np.ndarray
    lights: tuple[Light, ...]
    """Before, after."""
    minute: int
    cloud: tuple[np.ndarray, float] | None


def _plan(rng: np.random.Generator, event: Event, ordinal: int, size: int) -> Plan:
    """Decide what stands in a scene and what becomes of it; its ordinal decides what kind of scene it is."""
    is_empty, is_quiet, is_cloudy = ordinal % 5 == 3, ordinal % 7 == 4, ordinal % 4 == 1
    start = rng.uniform(0, CELL), rng.uniform(0, BLOCK)
    streets = Streets(rng.uniform(-0.3, 0.3), rng.uniform(8, 26), rng.uniform(150, 320), start)
    houses = [] if is_empty else _houses(rng, event, streets, size)
    danger = _danger(rng, event, size)
    cloud = None
    if is_cloudy and houses and not is_quiet:
        cloud = houses[rng.integers(len(houses))].frame[0], rng.uniform(46, 64)
    harm = np.zeros_like(danger)
    if not is_quiet:
        harm = _harm(rng, houses, danger, cloud)
    trees = _trees(rng, event, streets, houses, size)
    lights = tuple(
        Light(
            sun=np.array([np.sin(azimuth), -np.cos(azimuth)]),
            gain=(rng.uniform(0.94, 1.06) if moment == "pre" else rng.uniform(0.88, 1.16)) * rng.uniform(0.96, 1.04, 3),
            haze=rng.uniform(0, 5) if moment == "pre" else rng.uniform(0, 18),
        )
        for moment, azimuth in zip(("pre", "post"), np.radians(rng.uniform(125, 185, 2)), strict=True)
    )
    return Plan(event, size, rng, streets, houses, harm, trees, lights, int(rng.integers(60)), cloud)


def _houses(rng: np.random.Generator, event: Event, streets: Streets, size: int) -> list[House]:
    """Fill the lots along every street that crosses the tile, one cell between two cross streets after the other."""
    edge = np.array([0.0, size])
    u, v = streets.from_image(*(axis.ravel() for axis in np.meshgrid(edge, edge)))
    houses = []
    for k in range(int(v.min() // BLOCK) - 1, int(v.max() // BLOCK) + 3):
        for side in (-1, 1):
            for cell in range(int(u.min() // CELL), int(u.max() // CELL) + 1):
                kind = str(rng.choice(["houses", "row", "hall"], p=[0.8, 0.12, 0.08]))
                middle, row_colour = (cell + 0.5) * CELL, ROOFS[0][rng.integers(len(ROOFS[0]))]
                for offset, length, depth, shape in _lots(rng, kind, event.built):
                    at = middle if kind == "row" else middle + offset  # a row is straight where the street bends
                    along = _unit(streets.direction(at))
                    centre = streets.to_image(at, k * BLOCK + side * SETBACK) + (middle + offset - at) * along
                    colours = (row_colour,) if kind == "row" else ROOFS[shape == "flat"]
                    frame = centre, along, side * along[::-1] * (-1, 1)
                    house = _house(rng, frame, (length, depth), shape, colours[rng.integers(len(colours))], size)
                    if house is not None:
                        houses.append(house)
    return houses


def _lots(rng: np.random.Generator, kind: str, built: float) -> list[tuple[float, float, float, str]]:
    """Return (offset from the cell's middle, length, depth, shape) of a cell's buildings on one side of the street."""
    if kind == "hall":
        return [(rng.uniform(-40, 40), rng.uniform(110, 190), rng.uniform(44, 58), "flat")]
    if kind == "row":  # walls touch
        return [((i - 3) * 40.0, 40.0, 27.0, "gable") for i in range(7) if rng.random() < 0.93]
    shapes = ["gable", "hip", "wing", "flat"]
    return [
        (
            (i - 2.5) * LOT + rng.uniform(-5, 5),
            rng.uniform(31, 47),
            rng.uniform(23, 31),
            str(rng.choice(shapes, p=[0.4, 0.22, 0.28, 0.1])),
        )
        for i in range(6)
        if rng.random() < built
    ]


ROOFS = (
    ((122, 112, 104), (138, 120, 104), (94, 92, 94), (150, 116, 94), (170, 162, 152), (104, 112, 122), (198, 196, 192)),
    ((212, 210, 206), (182, 180, 176), (150, 148, 146)),
)
"""Roof colours of pitched and of flat roofs."""


def _house(rng: np.random.Generator, frame: tuple, extent: tuple, shape: str, colour: tuple, size: int) -> House | None:
    """Build a house in its frame; None where hardly any of it lies in the tile."""
    a, b = extent[0] / 2, extent[1] / 2
    corners = [(-a, -b), (a, -b), (a, b), (-a, b)]
    front, back, left, right = (0, -1), (0, 1), (-1, 0), (1, 0)
    if shape == "hip":
        r = a - 0.8 * b
        faces = [
            ([(-a, -b), (a, -b), (r, 0), (-r, 0)], front),
            ([(-a, b), (a, b), (r, 0), (-r, 0)], back),
            ([(-a, -b), (-r, 0), (-a, b)], left),
            ([(a, -b), (r, 0), (a, b)], right),
        ]
    elif shape == "flat":
        faces = [(corners, (0, 0))]
    else:
        faces = [([(-a, -b), (a, -b), (a, 0), (-a, 0)], front), ([(-a, 0), (a, 0), (a, b), (-a, b)], back)]
    if shape == "wing":
        w, deep = rng.uniform(14, 19), b + rng.uniform(9, 16)
        corners = [(-a, -b), (a, -b), (a, deep), (a - w, deep), (a - w, b), (-a, b)]
        faces.append(([(a - w, b), (a - w, deep), (a - w / 2, deep), (a - w / 2, b - w / 2)], left))
        faces.append(([(a, b), (a, deep), (a - w / 2, deep), (a - w / 2, b - w / 2)], right))
    outline = _placed(frame, corners)
    footprint = Polygon(outline).intersection(shapely.box(0, 0, size, size))
    if footprint.geom_type != "Polygon" or footprint.area < 40:
        return None
    origin = (np.zeros(2), *frame[1:])
    return House(
        outline=outline,
        faces=[(_placed(frame, face), _placed(origin, [normal])[0]) for face, normal in faces],
        colour=np.array(colour) * rng.uniform(0.85, 1.03),
        height=rng.uniform(7, 11),
        frame=frame,
        half=(a, b),
        footprint=footprint,
        uid=str(uuid.UUID(bytes=rng.bytes(16), version=4)),
    )


def _danger(rng: np.random.Generator, event: Event, size: int) -> np.ndarray:
    """Draw how strongly each place is hit, (H, W) float32 in no unit: a track for wind, basins for water and fire."""
    relief = _noise(rng, size, 420, 170)
    if event.kind != "wind":
        return relief
    (x, y), (at_x, at_y) = _grid(size), rng.uniform(0.3 * size, 0.7 * size, 2).tolist()
    angle = rng.uniform(0, math.pi)
    off_track = math.cos(angle) * (x - at_x) + math.sin(angle) * (y - at_y)
    return 0.35 * relief - np.abs(off_track) / 150


def _harm(rng: np.random.Generator, houses: list[House], danger: np.ndarray, cloud: tuple | None) -> np.ndarray:
    """Give every house its subtype by rank of danger, so that each class is there; return the harm to the land."""
    size = len(danger)
    seen = []
    for house in houses:
        if cloud is not None and np.hypot(*(np.array(house.footprint.centroid.coords[0]) - cloud[0])) < 0.8 * cloud[1]:
            house.subtype = UNCLASSIFIED
        else:
            seen.append(house)
    at = [np.clip(house.frame[0], 0, size - 1).astype(int) for house in seen]
    score = np.array([danger[y, x] for x, y in at]) + rng.normal(0, 0.25, len(seen))
    for rank, i in enumerate(np.argsort(score)):
        share = (rank + 0.5) / len(seen)
        seen[i].subtype = SUBTYPES[int(np.searchsorted([0.40, 0.61, 0.79], share))]
    mild, worst = np.quantile(danger, [0.45, 0.88])
    return np.clip((danger - mild) / (worst - mild), 0, 1).astype(np.float32)


def _trees(rng: np.random.Generator, event: Event, streets: Streets, houses: list[House], size: int) -> np.ndarray:
    """Scatter trees in clumps beside streets and houses: (N, 5, 3) of x, y, radius in pixels, five crowns a tree."""
    count = int(event.trees * (size / 1024) ** 2 * 2.2)
    xy, radius = rng.uniform(0, size, (count, 2)), rng.uniform(4.5, 10.5, (count, 1, 1))
    crowns = np.concatenate([xy[:, None] + rng.normal(0, 0.45, (count, 5, 2)) * radius, radius.repeat(5, 1)], axis=2)
    crowns[:, 0, :2] = xy
    taken: np.ndarray = np.zeros((size, size), np.uint8)
    for house in houses:
        _fill(taken, house.outline, 255)
    taken = cv2.dilate(taken, np.ones((9, 9), np.uint8))
    column, row = xy.astype(int).T
    u, v = streets.from_image(*xy.T)
    is_free = (taken[row, column] == 0) & (_to_street(v, BLOCK) > 15) & (_to_street(u, CELL) > 15)
    grows = _noise(rng, size, 190, 60)[row, column] + rng.normal(0, 0.6, count) > 0.0
    return crowns[is_free & grows]


def _unit(angle: float) -> np.ndarray:
    return np.array([math.cos(angle), math.sin(angle)])


def _placed(frame: tuple, points: ArrayLike) -> np.ndarray:
    centre, along, back = frame
    return centre + np.asarray(points, float) @ np.array([along, back])  # (V, 2)


def _to_street(coordinate: np.ndarray, spacing: float) -> np.ndarray:
    """Return the distance to the nearest multiple of ``spacing``."""
    return np.abs((coordinate + spacing / 2) % spacing - spacing / 2)


# ---- xView2: the pictures -------------------------------------------------------------------------------------------
def _draw(plan: Plan) -> tuple[np.ndarray, np.ndarray]:
    """Draw the scene before and after: two (H, W, 3) uint8."""
    rng, size, event = plan.rng, plan.size, plan.event
    u, v = plan.streets.from_image(*_grid(size))
    terrain = 0.9 * _noise(rng, size, 260, 90, 30) + 0.2 * _noise(rng, size, 7)
    fine = _noise(rng, size, 3)
    parcels = rng.normal(0, 0.5, (64, 64)).astype(np.float32)
    terrain += parcels[(v // (BLOCK / 2)).astype(int) % 64, (u // (LOT if plan.houses else 2 * LOT)).astype(int) % 64]
    if not plan.houses:  # fields, ploughed
        terrain += 0.25 * np.sin(u * 0.9) + 0.3
    to_road = np.minimum(_to_street(v, BLOCK), _to_street(u, CELL)) if plan.houses else _to_street(v, 4 * BLOCK)
    ground = _paint(terrain + 0.15 * fine, np.array(event.land) * rng.uniform(0.9, 1.06) + rng.normal(0, 4, 3))
    roads = _paint(0.5 * terrain + 0.2 * fine, ((98, 97, 95), (122, 119, 116)))
    kerb = _soft(SIDEWALK - to_road)
    ground = _blend(ground, np.full_like(ground, (160, 156, 146)), 0.7 * kerb)
    ground = _blend(ground, roads, _soft(ROAD - to_road))
    _yards(plan, ground)
    before, after = ground, _ravaged(plan, ground, fine)
    pre = _expose(plan, _stand(plan, before, fine, after=False), after=False)
    post = _expose(plan, _stand(plan, after, fine, after=True), after=True)
    return pre, post


def _yards(plan: Plan, ground: np.ndarray) -> None:
    """Draw driveways, pools and parked cars onto the ground, in place."""
    rng = plan.rng
    for house in plan.houses:
        (a, b), t = house.half, rng.uniform(-0.6, 0.6)
        if rng.random() < 0.8:
            drive = [(t * a - 4, -b), (t * a + 4, -b), (t * a + 4, 6 - SETBACK), (t * a - 4, 6 - SETBACK)]
            _fill(ground, house.place(drive), rng.uniform(0.9, 1.08) * np.array((164, 160, 150)))
        if rng.random() < 0.5:
            at = (t * a, -b - rng.uniform(6, 12)) if rng.random() < 0.6 else (rng.uniform(-a, a), 1 - SETBACK)
            turn = (3, 5) if at[1] > 8 - SETBACK else (5, 2.5)  # towards the house, or parked along the kerb
            _fill(ground, house.place(_box(at, turn)), CARS[rng.integers(len(CARS))])
        if rng.random() < 0.12:
            _fill(ground, house.place(_box((rng.uniform(-a, a), b + 22), (6, 4))), (86, 176, 198))


CARS = ((226, 226, 224), (40, 42, 46), (150, 152, 156), (140, 40, 36), (52, 70, 120), (196, 190, 176))


def _ravaged(plan: Plan, ground: np.ndarray, fine: np.ndarray) -> np.ndarray:
    """Return the ground after the disaster: debris, soot or water, where the land was harmed."""
    rng, harm = plan.rng, plan.harm
    rough = _noise(rng, plan.size, 60, 20, 7)
    if plan.event.kind == "wind":
        ground = _blend(ground, _paint(rough + fine, ((104, 86, 64), (136, 114, 86), (152, 132, 104))), 0.6 * harm)
        scattered = np.clip(2.5 * (fine + 0.5 * rough - 2.3 + 1.3 * harm), 0, 1) * (harm > 0)
        return _blend(ground, _confetti(rng, plan), 0.8 * scattered)
    if plan.event.kind == "fire":
        burnt = np.clip(harm * 1.3 + 0.35 * rough - 0.25, 0, 0.8) * (harm > 0)
        return _blend(ground, _paint(rough + 0.5 * fine, ((46, 42, 40), (74, 66, 60), (108, 100, 92))), burnt)
    deep = np.clip(6 * (harm + 0.05 * rough - 0.3), 0, 1) * (harm > 0)
    return _blend(ground, _paint(0.3 * rough + 0.03 * fine, ((84, 76, 60), (106, 95, 74), (128, 117, 94))), 0.93 * deep)


def _stand(plan: Plan, ground: np.ndarray, fine: np.ndarray, after: bool) -> np.ndarray:
    """Set houses and trees on the ground, with shadows, roofs and what the disaster left of them."""
    rng, size, event = plan.rng, plan.size, plan.event
    sun = plan.lights[after].sun
    state = [house.subtype if after else SUBTYPES[0] for house in plan.houses]
    trees = plan.trees
    if after:
        struck = plan.harm[trees[:, 0, 1].astype(int), trees[:, 0, 0].astype(int)]
        trees = trees[rng.random(len(trees)) > struck * {"wind": 0.9, "fire": 0.45, "flooding": 0.2}[event.kind]]

    canopy = np.zeros((size, size), np.uint8)
    for crown_x, crown_y, radius in trees.reshape(-1, 3):
        at = int(16 * crown_x), int(16 * crown_y)
        for shrink, level in ((0.75, 120), (0.45, 190)):
            cv2.circle(canopy, at, int(16 * radius * shrink), level, cv2.FILLED, cv2.LINE_AA, 4)
    fall = np.array([[1, 0, -7 * sun[0]], [0, 1, -7 * sun[1]]], np.float32)
    shade = cv2.threshold(cv2.warpAffine(canopy, fall, (size, size)), 60, 255, cv2.THRESH_BINARY)[1]
    roofs = np.zeros((size, size), np.uint8)
    for house, subtype in zip(plan.houses, state, strict=True):
        if subtype != "destroyed":
            for step in np.linspace(0, 0.85 * house.height, 6):
                _fill(shade, house.outline - step * sun, 255)
            _fill(roofs, house.outline, 255)
    shade = cv2.GaussianBlur(np.where((roofs > 127) | (canopy > 100), 0, shade).astype(np.float32) / 255, (0, 0), 0.8)
    picture = _lit(ground, 1 - 0.55 * shade + 0.035 * fine)

    ruin = np.zeros((size, size), np.uint8)
    for house, subtype in zip(plan.houses, state, strict=True):
        if subtype != "destroyed":
            _roof(picture, house, sun)
        if subtype == "minor-damage":
            _patch(rng, picture, house, event)
        elif subtype == "major-damage":
            _fill(ruin, house.place(_torn_side(rng, house)), 255)
        elif subtype == "destroyed":
            _fill(picture, house.outline, 0.8 * np.array(event.rubble[0]))  # the slab; shows between the debris
            _fill(ruin, house.outline, 255)
            for dx, dy in rng.normal(0, 0.75 * max(house.half), (7, 2)):
                at = (house.frame[0] + (dx, dy)).astype(int).tolist()
                cv2.circle(ruin, at, int(rng.integers(2, 6)), 255, -1)
    if ruin.any():
        ragged = cv2.GaussianBlur(ruin, (0, 0), 1.6).astype(np.float32) / 255
        ragged += 0.18 * fine * (ragged > 0.05)
        picture = _blend(picture, _confetti(rng, plan), np.clip(3 * (ragged - 0.3), 0, 0.92))

    bumps = cv2.GaussianBlur(canopy.astype(np.float32) / 255 * (1 + 0.35 * fine), (0, 0), 1.1)
    relief = sun[0] * np.roll(bumps, 2, 1) - sun[0] * np.roll(bumps, -2, 1)
    relief += sun[1] * np.roll(bumps, 2, 0) - sun[1] * np.roll(bumps, -2, 0)
    green = np.array(event.tree)
    leaves = _paint(-1.6 * relief + 0.4 * fine, (0.4 * green, green, 1.5 * green, 2.1 * green))
    if after and event.kind == "fire":
        charred = _paint(-1.6 * relief + 0.4 * fine, ((28, 26, 24), (62, 54, 46), (98, 84, 66)))
        leaves = _blend(leaves, charred, np.clip(1.5 * plan.harm, 0, 1))
    return _blend(picture, leaves, np.clip(bumps * 2.6 - 0.25, 0, 1))


def _roof(picture: np.ndarray, house: House, sun: np.ndarray) -> None:
    """Draw a roof, each face as bright as it faces the sun."""
    for face, normal in house.faces:
        _fill(picture, face, house.colour * (1 + 0.24 * normal @ sun))
    if len(house.faces) == 1:  # flat: a parapet, and machines
        (a, b) = house.half
        _fill(picture, house.place(_box((0, 0), (a - 2, b - 2))), 0.93 * house.colour)
        unit = np.random.default_rng(zlib.crc32(house.uid.encode()))  # the same in both pictures
        for _ in range(int(a * b / 300) + 1):
            at = unit.uniform(-0.7, 0.7, 2) * (a, b)
            _fill(picture, house.place(_box(at, unit.uniform(1.5, 3.5, 2))), unit.choice([0.6, 1.15]) * house.colour)


def _patch(rng: np.random.Generator, picture: np.ndarray, house: House, event: Event) -> None:
    """Cover 25 to 40 % of a roof with what stands for minor damage, and tear a few holes."""
    (a, b) = house.half
    share = rng.uniform(0.25, 0.4)
    wide = rng.uniform(0.5, 0.8)
    half = np.array([a * wide, b * min(share / wide, 0.9)])
    centre = rng.choice([-1, 1], 2) * (np.array([a, b]) - half) * rng.uniform(0.5, 1, 2)
    corners = np.array(_box(centre, half)) + rng.normal(0, 1.2, (4, 2))
    _fill(picture, house.place(np.clip(corners, (-a, -b), (a, b))), event.patch[rng.integers(len(event.patch))])
    for _ in range(4):
        hole = rng.uniform(-0.8, 0.8, 2) * (a, b)
        _fill(picture, house.place(_box(hole, rng.uniform(1.2, 2.6, 2))), (48, 44, 40))


def _torn_side(rng: np.random.Generator, house: House) -> list[tuple[float, float]]:
    """Return the part of a house, (along, back), whose roof is gone: 45 to 62 % from one end, torn in a zigzag."""
    (a, b), end = house.half, rng.choice([-1, 1])
    deep = max((house.outline - house.frame[0]) @ house.frame[2])
    cut = rng.uniform(-0.25, 0.1) * a
    zigzag = [(end * (cut + rng.normal(0, 3)), back) for back in np.linspace(-b - 2, deep + 2, 6)]
    return [*zigzag, (end * (a + 2), deep + 2), (end * (a + 2), -b - 2)]


def _confetti(rng: np.random.Generator, plan: Plan) -> np.ndarray:
    """Return a picture full of debris in the event's colours, light and dark."""
    n = plan.size // 2 + 1
    pieces: np.ndarray = np.array(plan.event.rubble, np.uint8)[rng.integers(len(plan.event.rubble), size=(n, n))]
    pieces = cv2.resize(pieces, (2 * n, 2 * n), interpolation=cv2.INTER_LINEAR)[: plan.size, : plan.size]
    return _lit(cv2.GaussianBlur(pieces, (0, 0), 0.7), 0.92 + 0.14 * _noise(rng, plan.size, 6))


def _expose(plan: Plan, picture: np.ndarray, after: bool) -> np.ndarray:
    """Take the picture: clouds, registration error of the second overpass, optics, light, sensor noise."""
    rng, size, light = plan.rng, plan.size, plan.lights[after]
    if after:
        if plan.cloud is not None:
            x, y = _grid(size)
            (cx, cy), radius = plan.cloud
            thick = 1.25 - np.hypot(x - cx, y - cy) / radius + 0.12 * _noise(rng, size, 30, 12)
            picture = _blend(picture, np.full_like(picture, 236), np.clip(2.5 * thick, 0, 0.97))
        shift = np.array([[1, 0, rng.uniform(-2, 2)], [0, 1, rng.uniform(-2, 2)]], np.float32)
        picture = cv2.warpAffine(picture, shift, (size, size), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
    picture = cv2.GaussianBlur(picture, (0, 0), 0.65).astype(np.float32)
    picture *= (light.gain * (1 + 0.03 * _noise(rng, size, 500)[..., None])).astype(np.float32)
    picture += light.haze + 1.6 * rng.standard_normal((size, size, 1), np.float32)
    return np.clip(picture, 0, 255).astype(np.uint8)


# ---- brushes --------------------------------------------------------------------------------------------------------
def _noise(rng: np.random.Generator, size: int, *scales: float) -> np.ndarray:
    """Draw smooth noise with features of about ``scales`` pixels, the largest strongest: (H, W) float32, variance 1."""
    field = np.zeros((size, size), np.float32)
    weights = np.sqrt(scales) / np.linalg.norm(np.sqrt(scales))
    for scale, weight in zip(scales, weights, strict=True):
        n = round(size / scale) + 2
        grid = 1.4 * weight * rng.standard_normal((n, n), np.float32)  # 1.4: what smoothing takes away
        if scale > 16:  # cubic at a quarter of the size, the rest linear: three times as fast, looks the same
            grid = cv2.resize(grid, (size // 4, size // 4), interpolation=cv2.INTER_CUBIC)
            field += cv2.resize(grid, (size, size), interpolation=cv2.INTER_LINEAR)
        else:
            field += cv2.resize(grid, (size, size), interpolation=cv2.INTER_CUBIC)
    return field


def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return x (1, W) and y (H, 1), float32; together they span the picture."""
    axis = np.arange(size, dtype=np.float32)
    return axis[None], axis[:, None]


def _paint(field: np.ndarray, colours: ArrayLike) -> np.ndarray:
    """Colour a field: -2.5 becomes the first colour, 2.5 the last, in between they run into each other."""
    bands = np.transpose(colours)
    places = np.linspace(0, 1, bands.shape[1])
    ramp = np.column_stack([np.interp(np.linspace(0, 1, 256), places, band) for band in bands])
    levels = cv2.convertScaleAbs(np.clip(field + 2.5, 0, 5), alpha=51)
    return cv2.LUT(cv2.merge([levels] * 3), np.clip(ramp, 0, 255).astype(np.uint8)[None])  # (H, W, 3)


def _blend(under: np.ndarray, over: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Lay one picture over another; alpha: (H, W), 1 where only ``over`` is seen."""
    alpha = alpha.astype(np.float32)
    return cv2.blendLinear(np.ascontiguousarray(under), np.ascontiguousarray(over), 1 - alpha, alpha)


def _lit(picture: np.ndarray, light: np.ndarray) -> np.ndarray:
    """Multiply a picture by a field of light (H, W)."""
    return cv2.multiply(picture, cv2.merge([light.astype(np.float32)] * 3), dtype=cv2.CV_8U)


def _soft(depth: np.ndarray) -> np.ndarray:
    """Turn a signed distance in pixels (positive inside) into coverage 0..1."""
    return np.clip(depth + 0.5, 0, 1)


def _box(centre: Iterable[float], half: Iterable[float]) -> list[tuple[float, float]]:
    (x, y), (a, b) = centre, half
    return [(x - a, y - b), (x + a, y - b), (x + a, y + b), (x - a, y + b)]


def _fill(canvas: np.ndarray, polygon: np.ndarray, colour: ArrayLike) -> None:
    """Fill a polygon of (x, y) pixels with smooth edges, in place."""
    corners = np.rint(np.asarray(polygon) * 16).astype(np.int32)
    cv2.fillPoly(canvas, [corners], np.atleast_1d(colour).tolist(), cv2.LINE_AA, 4)
