import importlib
import pkgutil
import sys

import recipes.bench
from recipes import stopping_cleanly
from recipes.bench import harness


def main() -> None:
    names = [module.name for module in pkgutil.iter_modules(recipes.bench.__path__)]
    tools = ("__main__", "floor", "gradients", "harness", "networks", "rivals", "tutorial_loop")
    names = [name for name in names if name not in tools]
    if len(sys.argv) < 2 or sys.argv[1] not in names:
        sys.exit(f"usage: python -m recipes.bench NAME, where NAME is one of: {', '.join(names)}")
    name = sys.argv.pop(1)
    with stopping_cleanly():
        harness.begin(keep_memory=name != "memory")
        importlib.import_module(f"recipes.bench.{name}").main()


main()
