"""The rooms of DESIGN are real: who may import whom, no cycles, no bans broken, nothing heavy in the page's process."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.trust.f14_bans import breaches, modules
from studio.settings import ROOT

HEAVY = {"torch", "diffusers", "peft", "transformers", "accelerate", "controlnet_aux", "spandrel"}
PURE = {
    "spec",
    "events",
    "families",
    "family",
    "few_steps",
    "family_table",
    "latent_colours",
    "fitting",
    "schedulers",
    "settings",
    "errors",
    "lease",
    "loras",
    "kohya_keys",
    "lora_blocks",
    "merging",
    "memory",
    "doctor",
    "fields",
    "visitors",
    "grid",
    "plots",
    "preprocessors",
    "prompt_syntax",
    "buckets",
    "chunks",
    "findings",
    "captioning",
    "caption_doctor",
    "dataset_doctor",
    "picture_facts",
    "word_facts",
    "embeddings",
    "dynamic_prompts",
    "styles",
    "prompt_report",
    "records",
    "units",
    "tools",
    "lab",
    "lab_fields",
    "lab_latents",
    "lab_plane",
    "lab_wordless",
    "transparency",
    "parts",
    "upscalers",
    "layouts",
    "checkpoints",
    "gguf_header",
    "lone_denoisers",
    "recommended",
    "sources",
    "file_kinds",
    "caption_edits",
    "training",
    "yaml_text",
}
RULES = {  # a room may import from `studio` only these rooms, and never these libraries
    "pure": (PURE | {"store"}, HEAVY | {"gradio", "starlette", "cv2"}),
    "store": (PURE | {"store"}, HEAVY | {"gradio", "starlette", "cv2"}),
    "engine": (PURE | {"engine"}, {"gradio", "starlette", "sqlite3"}),
    "executors": (PURE | {"store", "engine", "executors"}, {"gradio", "starlette"}),
    "ui": (PURE | {"store", "ui"}, HEAVY | {"cv2"}),
    "trainers": (PURE | {"engine", "store"}, {"gradio", "starlette"}),
}


def imports(path: Path, *, top: bool = False) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found: set[str] = set()
    for node in tree.body if top else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            found |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room_of(module: str) -> str:
    parts = module.split(".")
    if parts[0] == "trainers":
        return "trainers"
    return "pure" if len(parts) > 1 and parts[1] in PURE else parts[1] if len(parts) > 1 else ""


@pytest.mark.parametrize("module", [name for name in modules() if room_of(name) in RULES])
def test_a_room_imports_only_what_it_may(module: str) -> None:
    rooms, libraries = RULES[room_of(module)]
    for name in imports(modules()[module]):
        parts = name.split(".")
        assert parts[0] not in libraries, f"{module} imports {name}"
        if parts[0] == "studio" and len(parts) > 1:
            assert parts[1] in rooms, f"{module} imports {name}"
        assert not (module.startswith("studio") and parts[0] == "trainers"), f"{module} imports {name}"


def test_no_import_cycles() -> None:
    known = modules()
    graph = {
        name: {target for target in imports(path, top=True) if target in known and target != name}
        for name, path in known.items()
    }
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail, name))
        if name not in done:
            for target in graph[name]:
                visit(target, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_the_page_process_never_imports_torch() -> None:
    code = (
        "import sys, app, studio.ui.build, studio.ui.routes, studio.executors.dispatcher, studio.executors.worker, studio.__main__\n"
        f"print(sorted({HEAVY!r} & set(sys.modules)))"
    )
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


@pytest.mark.parametrize("module", list(modules()))
def test_bans(module: str) -> None:
    source = modules()[module].read_text(encoding="utf-8")
    assert not list(breaches(module, source))
    for node in ast.walk(ast.parse(source)):
        assert not isinstance(node, ast.Global), f"{module}: global"
        if isinstance(node, ast.Assign | ast.AugAssign):
            for target in getattr(node, "targets", None) or [node.target]:  # type: ignore[union-attr]
                base = ast.unparse(target).split(".")[0]
                assert base not in HEAVY | {"gr", "gradio"}, f"{module}:{node.lineno} assigns onto {base}"
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < 70, f"{module}:{node.lineno} {node.name} is too long"


def test_files_stay_short() -> None:
    long = [name for name, path in modules().items() if path.read_text(encoding="utf-8").count("\n") > 420]
    assert not long


def test_the_checks_can_fail() -> None:
    assert "torch" in imports(ROOT / "studio" / "engine" / "engine.py")
    assert RULES["ui"][1] & imports(ROOT / "studio" / "engine" / "engine.py")
