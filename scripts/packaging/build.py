"""Build the wheel, and from it the zip that spark-submit sends along: from a wheel, executors cannot import."""

import sys
from contextlib import chdir
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

from hatchling.build import build_wheel

ROOT = Path(__file__).parent.parent.parent


def main(folder: Path) -> None:
    """Build both into a folder and tell where they are."""
    folder.mkdir(parents=True, exist_ok=True)
    with chdir(ROOT):
        wheel = folder / build_wheel(str(folder))
    for built in (wheel, zip_of(wheel)):
        print(built)  # noqa: T201 (what the command tells)


def zip_of(wheel: Path) -> Path:
    """The package of a wheel without its metadata, beside it: names in order, times as the wheel fixes them."""
    name, version, *_ = wheel.name.split("-")
    target = wheel.with_name(f"{name}-{version}.zip")
    with ZipFile(wheel) as built, ZipFile(target, "w", ZIP_DEFLATED) as archive:
        for entry in sorted(built.infolist(), key=lambda entry: entry.filename):
            if entry.filename.startswith(f"{name}/"):
                fixed = ZipInfo(entry.filename, entry.date_time)
                fixed.external_attr = 0o644 << 16
                archive.writestr(fixed, built.read(entry), ZIP_DEFLATED)
    return target


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
