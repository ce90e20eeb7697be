"""Colours for QGIS: style files (.qml), and the same styles within the GeoPackage, which QGIS takes by itself."""

import xml.etree.ElementTree as ET
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from lib.files import write_bytes
from lib.maps.vectors import write_layer

VERSION = "3.28.0"
"""The version of QGIS whose style files these are; later ones read them."""
STYLES = "layer_styles"
"""The table of a GeoPackage in which QGIS looks for the style of a layer."""
GREY = "#808080"
"""Colour of a class without one."""


def rgb(colour: str) -> tuple[int, int, int]:
    """Return red, green and blue of "#rrggbb", 0..255 each."""
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def objects_qml(classes: Mapping[str, str]) -> str:
    """Return a style of polygons coloured by their column "class"; classes: name -> "#rrggbb"."""
    root = _root()
    renderer = ET.SubElement(root, "renderer-v2", type="categorizedSymbol", attr="class", symbollevels="0",
                             forceraster="0", enableorderby="0")  # fmt: skip
    categories = ET.SubElement(renderer, "categories")
    symbols = ET.SubElement(renderer, "symbols")
    for number, (name, colour) in enumerate(classes.items()):
        ET.SubElement(categories, "category", value=name, label=name, symbol=str(number), render="true", type="string")
        _fill(symbols, str(number), colour, 128)
    return _text(root)


def cells_qml(column: str = "objects") -> str:
    """Return a style of cells, an outline with the number of their objects in it."""
    root = _root(" | Labels")
    root.set("labelsEnabled", "1")
    renderer = ET.SubElement(root, "renderer-v2", type="singleSymbol", symbollevels="0", forceraster="0",
                             enableorderby="0")  # fmt: skip
    _fill(ET.SubElement(renderer, "symbols"), "0", GREY, 0)
    labelling = ET.SubElement(root, "labeling", type="simple")
    settings = ET.SubElement(labelling, "settings")
    ET.SubElement(settings, "text-style", fieldName=column, fontSize="8", isExpression="0", textColor="0,0,0,255")
    return _text(root)


def levels_qml() -> str:
    """Return a style of a raster of levels: one band in grey from 0 to 255, seen through a little."""
    root = _root()
    pipe = ET.SubElement(root, "pipe")
    renderer = ET.SubElement(pipe, "rasterrenderer", type="singlebandgray", grayBand="1", gradient="BlackToWhite",
                             opacity="0.8", alphaBand="-1")  # fmt: skip
    stretch = ET.SubElement(renderer, "contrastEnhancement")
    for name, value in (("minValue", "0"), ("maxValue", "255"), ("algorithm", "StretchToMinimumMaximum")):
        ET.SubElement(stretch, name).text = value
    return _text(root)


def write(folder: Path, styles: Mapping[str, str]) -> None:
    """Write style files. styles: name of a file without suffix -> its text."""
    for name, text in styles.items():
        write_bytes(folder / f"{name}.qml", text.encode())


def write_into(package: Path, styles: Mapping[str, str]) -> None:
    """Write styles into a GeoPackage. styles: layer -> text of its style."""
    rows = [{"f_table_catalog": "", "f_table_schema": "", "f_table_name": layer, "f_geometry_column": "geom",
             "styleName": layer, "styleQML": text, "styleSLD": "", "useAsDefault": True, "description": layer,
             "owner": "", "ui": None, "update_time": pd.Timestamp(0)} for layer, text in styles.items()]  # fmt: skip
    write_layer(package, STYLES, pd.DataFrame(rows))


def _root(more: str = "") -> ET.Element:
    return ET.Element("qgis", version=VERSION, styleCategories=f"Symbology{more.replace(' | ', '|')}")


def _fill(symbols: ET.Element, name: str, colour: str, alpha: int) -> None:
    """Add a polygon's symbol: filled with a colour of this opacity (0..255), edged with the same."""
    symbol = ET.SubElement(symbols, "symbol", type="fill", name=name, alpha="1", clip_to_extent="1",
                           force_rhr="0")  # fmt: skip
    layer = ET.SubElement(symbol, "layer", {"class": "SimpleFill"}, enabled="1", locked="0", **{"pass": "0"})
    options = ET.SubElement(layer, "Option", type="Map")
    shown = ",".join(map(str, rgb(colour)))
    for key, value in (("color", f"{shown},{alpha}"), ("outline_color", f"{shown},255"), ("outline_style", "solid"),
                       ("outline_width", "0.3"), ("outline_width_unit", "MM"), ("style", "solid"),
                       ("joinstyle", "bevel")):  # fmt: skip
        ET.SubElement(options, "Option", name=key, value=value, type="QString")
        ET.SubElement(layer, "prop", k=key, v=value)


def _text(root: ET.Element) -> str:
    ET.indent(root)
    return "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n" + ET.tostring(root, encoding="unicode") + "\n"
