"""The import DAG of ARCHITECTURE.md, asserted over the syntax trees."""

import ast
import graphlib
import pathlib
import subprocess
import sys

import pytest

# package → the packages of the project it may import.
BELOW = {
    "errors": set(),
    "files": {"errors"},
    "figures": set(),
    "pareto": set(),
    "console": set(),
    "stop": set(),
    "streams": set(),
    "config": {"errors", "stop", "streams"},
    "budget": {"errors", "config"},
    "data": {"errors", "files", "console", "stop", "config", "glue"},
    "glue": {"errors"},
    "reporting": {"errors", "files", "console", "pareto", "glue", "config"},
    "tasks": {"errors", "console", "glue"},
    "models": set(),
    "objectives": {"errors", "config", "budget", "models"},
    "parallel": {"errors", "stop"},
    "optim": {"models"},
    "growth": {"models"},
    "hub": {"errors", "files", "data", "models"},
    "start": {"errors", "parallel"},
    "checkpoints": {
        "errors",
        "files",
        "config",
        "data",
        "models",
        "objectives",
        "parallel",
        "hub",
    },
    "tuning": {"errors", "files", "console", "config", "budget", "models", "parallel"},
    "training": {
        "errors",
        "files",
        "figures",
        "console",
        "stop",
        "streams",
        "config",
        "budget",
        "data",
        "models",
        "objectives",
        "parallel",
        "optim",
        "growth",
        "start",
        "checkpoints",
        "tuning",
        "writing",
        "reporting",
    },
    "writing": {"errors", "console", "models", "parallel"},
    "inference": {
        "errors",
        "files",
        "data",
        "models",
        "start",
        "checkpoints",
        "tuning",
        "writing",
    },
    "finetuning": {
        "errors",
        "tasks",
        "files",
        "console",
        "budget",
        "glue",
        "models",
        "objectives",
        "optim",
        "hub",
        "checkpoints",
        "tuning",
        "training",
        "inference",
    },
    "probing": {"errors", "files", "figures", "console", "models", "inference"},
    "publishing": {
        "errors",
        "tasks",
        "config",
        "files",
        "data",
        "glue",
        "models",
        "hub",
        "checkpoints",
        "inference",
        "reporting",
    },
    "planning": {
        "errors",
        "figures",
        "console",
        "config",
        "budget",
        "models",
        "objectives",
        "parallel",
        "start",
        "tuning",
        "training",
    },
    "notebook": {"training"},
    "demonstration": {"config", "data", "inference", "training"},
    "compress": {
        "errors",
        "tasks",
        "files",
        "figures",
        "reporting",
        "console",
        "config",
        "data",
        "glue",
        "models",
        "objectives",
        "checkpoints",
        "training",
        "inference",
        "finetuning",
    },
    "bench": {
        "errors",
        "console",
        "stop",
        "config",
        "budget",
        "data",
        "tasks",
        "glue",
        "models",
        "objectives",
        "parallel",
        "hub",
        "start",
        "tuning",
        "training",
        "finetuning",
    },
    "sweeps": {"errors", "files", "figures", "pareto", "console", "stop", "config", "training"},
    "main": {"errors", "console", "streams", "config", "parallel", "training", "demonstration"},
    "tools": {
        "errors",
        "tasks",
        "files",
        "console",
        "start",
        "config",
        "budget",
        "data",
        "checkpoints",
        "inference",
        "finetuning",
        "probing",
        "publishing",
        "planning",
        "compress",
        "bench",
        "sweeps",
        "reporting",
    },
    "configs": {"config"},
    "doctor": {"config"},
    # Names of modules, imported when their command is called.
    "__main__": {"stop", "streams"},
}
# Heavy packages → the modules that may import them, at any depth of the file.
HEAVY = {
    "tensorflow": {"data.tfdata_loader", "data.tfds_source", "glue.tfds_rows"},
    "tensorflow_datasets": {"data.tfds_source", "glue.tfds_rows"},
    "jax": {
        "start",
        "models",
        "objectives",
        "parallel",
        "optim",
        "growth",
        "checkpoints",
        "tuning",
        "writing.writer",
        "training",
        "inference",
        "finetuning",
        "probing",
        "publishing",
        "planning.compiler",
        "planning.plan",
        "planning.targets",
        "compress",
        "bench",
        "doctor",
    },
    "ray": {"data.ray_executor"},
    "torch": {
        "bench.peer_steps",
        "bench.torch_encoder",
        "bench.finetuning_peer",
        "publishing.parity",
    },
    "transformers": {"bench.peer_steps", "bench.finetuning_peer", "publishing.parity"},
}


def modules(root: pathlib.Path):
    for folder in ("cramjax", "tools", "configs"):
        for path in sorted((root / folder).rglob("*.py")):
            name = ".".join(path.relative_to(root).with_suffix("").parts)
            yield name.removesuffix(".__init__"), ast.parse(path.read_text())


def imported(tree: ast.Module):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def storey(module: str) -> str:
    parts = module.removesuffix(".__version__").split(".")
    return parts[1] if parts[0] == "cramjax" and len(parts) > 1 else parts[0]


def test_imports_go_down_only(root):
    wrong = []
    for module, tree in modules(root):
        here = storey(module)
        if module == "cramjax":  # lazy names, and `stop`
            continue
        for name in imported(tree):
            # The package itself has lazy names only.
            if name.split(".")[0] not in ("cramjax", "tools", "configs"):
                continue
            there = storey(name)
            if there not in (here, "cramjax") and there not in BELOW[here]:
                wrong.append(f"{module} imports {name}")
    assert not wrong


def test_heavy_packages_are_imported_where_the_architecture_says(root):
    wrong = []
    for module, tree in modules(root):
        inner = module.removeprefix("cramjax.")
        for name in imported(tree):
            package = name.split(".")[0]
            if package in HEAVY and not HEAVY[package] & {inner, inner.split(".")[0]}:
                wrong.append(f"{module} imports {name}")
    assert not wrong


def test_no_modules_import_each_other(root):
    trees = dict(modules(root))
    edges = {module: set() for module in trees}
    for module, tree in trees.items():
        for name in imported(tree):
            # "cramjax.data.loader.open_loader" is a name in the module "cramjax.data.loader".
            target = name if name in trees else name.rpartition(".")[0]
            if target in trees and target not in (module, "cramjax"):
                edges[module].add(target)
    # Raises CycleError, which names the circle.
    tuple(graphlib.TopologicalSorter(edges).static_order())


def test_every_package_stands_in_the_table(root):
    rooms = {storey(module) for module, _ in modules(root)} - {"cramjax"}
    assert rooms == set(BELOW)


@pytest.mark.parametrize(
    "module",
    [
        "cramjax",
        "cramjax.main",
        "cramjax.config.resolve",
        "cramjax.budget.clock",
        "cramjax.reporting.server",
    ],
)
def test_light_modules_import_neither_jax_nor_tensorflow(root, module):
    check = (
        f"import sys, {module}; heavy = {{'jax', 'tensorflow', 'torch'}} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", check], cwd=root, check=True, timeout=60)


def test_training_needs_no_tensorflow(root):
    check = (
        "import sys; sys.modules['tensorflow'] = None; sys.modules['tensorflow_datasets'] = None; "
        "import cramjax.training.run, cramjax.inference"
    )
    subprocess.run([sys.executable, "-c", check], cwd=root, check=True, timeout=120)
