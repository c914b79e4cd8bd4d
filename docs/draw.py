"""Draw the pictures of the pages: ``python docs/draw.py [NAME ...]`` writes them to ``docs/pictures``.

``python docs/draw.py --preview FOLDER [NAME ...]`` writes each as two PNG files in a folder, on a white ground and on a
dark one, and leaves ``docs/pictures`` alone.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the library of this clone, installed or not

# importing a module registers its pictures
from drawings import higher, second, shapes, style  # noqa: F401


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the pictures of the pages.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(style.PICTURES))
    parser.add_argument("--preview", type=Path, metavar="FOLDER")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(style.PICTURES)
    if unknown:
        parser.error(f"no picture is called {', '.join(sorted(unknown))}; there are {', '.join(style.PICTURES)}")
    for name in arguments.names or style.PICTURES:
        if arguments.preview:
            arguments.preview.mkdir(parents=True, exist_ok=True)
            style.preview(name, arguments.preview)
        else:
            print(style.save(name))


if __name__ == "__main__":
    main()
