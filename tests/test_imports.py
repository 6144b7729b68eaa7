"""The import DAG of ARCHITECTURE.md, asserted over the syntax trees."""

import ast
import pathlib
import subprocess
import sys

import pytest

# package → the packages of the project it may import.
BELOW = {
    "stop": set(),
    "config": {"stop"},
    "budget": {"config"},
    "data": {"config"},
    "models": set(),
    "hub": {"config", "data", "models"},
    "objectives": set(),
    "parallel": {"config"},
    "optim": {"models"},
    "growth": {"models"},
    "start": {"parallel"},
    "training": {
        "start",
        "stop",
        "config",
        "budget",
        "data",
        "growth",
        "hub",
        "models",
        "objectives",
        "parallel",
        "optim",
    },
    "inference": {"start", "config", "data", "models", "objectives", "training"},
    "benchmarks": {"config"},
    "finetuning": {
        "config",
        "budget",
        "benchmarks",
        "hub",
        "models",
        "objectives",
        "optim",
        "training",
        "inference",
    },
    "publishing": {"config", "benchmarks", "data", "hub", "models", "inference"},
    "probing": {"config", "models", "inference"},
    "compress": {
        "config",
        "benchmarks",
        "data",
        "hub",
        "models",
        "training",
        "inference",
        "finetuning",
        "study",
    },
    "planning": {"start", "config", "budget", "parallel", "models", "training"},
    "notebook": {"training"},
    "demonstration": {"data", "inference"},
    "study": {
        "start",
        "stop",
        "config",
        "budget",
        "data",
        "models",
        "objectives",
        "parallel",
        "optim",
        "training",
        "benchmarks",
        "finetuning",
        "hub",
    },
    "main": {"config", "training", "demonstration"},
    "tools": {
        "start",
        "config",
        "data",
        "training",
        "study",
        "inference",
        "finetuning",
        "probing",
        "publishing",
        "hub",
        "compress",
        "planning",
    },
    "configs": {"config"},
}
# Heavy packages → the modules that may import them, at any depth of the file.
HEAVY = {
    "tensorflow": {"data.tfdata_loader", "data.tfds_source", "benchmarks.tfds_rows"},
    "tensorflow_datasets": {"data.tfds_source", "benchmarks.tfds_rows"},
    "jax": {
        "start",
        "hub.parity",
        "growth",
        "compress",
        "publishing",
        "models",
        "objectives",
        "parallel",
        "optim",
        "training",
        "inference",
        "finetuning",
        "planning.compiler",
        "planning.plan",
        "planning.targets",
        "probing",
        "study",
    },
    "torch": {"study.peer_steps", "study.torch_encoder", "study.finetune_peer", "hub.parity"},
    "transformers": {"study.peer_steps", "study.finetune_peer", "hub.parity"},
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
    parts = module.split(".")
    return parts[1] if parts[0] == "cramjax" and len(parts) > 1 else parts[0]


def test_imports_go_down_only(root):
    wrong = []
    for module, tree in modules(root):
        here = storey(module)
        if module == "cramjax":  # lazy names only
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


def test_every_package_stands_in_the_table(root):
    found = {storey(module) for module, _ in modules(root)} - {"cramjax"}
    assert found == set(BELOW)


@pytest.mark.parametrize(
    "module", ["cramjax", "cramjax.main", "cramjax.config.resolve", "cramjax.budget.clock"]
)
def test_light_modules_import_neither_jax_nor_tensorflow(root, module):
    check = f"import sys, {module}; heavy = {{'jax', 'tensorflow', 'torch'}} & set(sys.modules); assert not heavy, heavy"
    subprocess.run([sys.executable, "-c", check], cwd=root, check=True, timeout=60)


def test_training_needs_no_tensorflow(root):
    check = (
        "import sys; sys.modules['tensorflow'] = None; sys.modules['tensorflow_datasets'] = None; "
        "import cramjax.training.run, cramjax.inference"
    )
    subprocess.run([sys.executable, "-c", check], cwd=root, check=True, timeout=120)


def test_functions_fit_a_screen(root):
    long = []
    for module, tree in modules(root):
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
                and node.end_lineno - node.lineno >= 80
            ):
                long.append(f"{module}.{node.name}: {node.end_lineno - node.lineno + 1} lines")
    assert not long
