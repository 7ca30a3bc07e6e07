"""Calls that run what a file says, and handlers that swallow every error: none in the product's code."""

import ast
from collections.abc import Iterator
from pathlib import Path

from benchmarks.trust.figure import Figure, Tally
from studio.settings import ROOT

BANNED_CALLS = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "gr.load"),
    *("yaml.load", "yaml.safe_load", "yaml.full_load", "yaml.unsafe_load", "torch.load", "torch.jit.load"),
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.loads", "shelve.open", "dill.loads", "joblib.load"),
}
BANNED_METHODS = {"extractall"}  # of archives: it trusts their names and sizes
BANNED_KEYWORDS = {
    *(("shell", "True"), ("trust_remote_code", "True"), ("allow_pickle", "True"), ("weights_only", "False")),
    ("custom_pipeline", ""),  # "": whatever the value
}
ALLOWED = {
    "studio.convert_main": {"torch.load"}
}  # the child of `convert`: to open a pickle, under limits, is all it is for


def modules() -> dict[str, Path]:
    """Return name -> file of every module of the product."""
    files = [*ROOT.glob("studio/**/*.py"), *ROOT.glob("trainers/**/*.py"), ROOT / "app.py"]
    return {
        path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__"): path
        for path in files
    }


def breaches(module: str, source: str) -> Iterator[str]:
    """Say what a module does that none may."""
    banned = BANNED_CALLS - ALLOWED.get(module, set())
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            yield from (f"{module}:{node.lineno} {what}" for what in _calls(node, banned))
        elif isinstance(node, ast.ImportFrom):
            hidden = [alias.name for alias in node.names if f"{node.module}.{alias.name}" in banned]
            yield from (f"{module}:{node.lineno} takes {name} by its bare name" for name in hidden)
        elif isinstance(node, ast.ExceptHandler) and _swallows(node):
            yield f"{module}:{node.lineno} swallows every error, and nobody hears of it"


def _calls(node: ast.Call, banned: set[str]) -> Iterator[str]:
    name = ast.unparse(node.func)
    if name in banned or (isinstance(node.func, ast.Attribute) and node.func.attr in BANNED_METHODS):
        yield name
    for keyword in node.keywords:
        value = ast.unparse(keyword.value)
        if (keyword.arg, value) in BANNED_KEYWORDS or (keyword.arg, "") in BANNED_KEYWORDS:
            yield f"{keyword.arg}={value}"


def _swallows(handler: ast.ExceptHandler) -> bool:
    """Whether a handler of every error neither raises, nor logs the traceback, nor passes the error itself on."""
    caught = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    if not any(one is None or ast.unparse(one) in ("Exception", "BaseException") for one in caught):
        return False
    body = ast.Module(handler.body, [])
    told = any(
        isinstance(node, ast.Raise) or (isinstance(node, ast.Call) and (_logs(node) or _hands_on(node, handler.name)))
        for node in ast.walk(body)
    )
    return not told


def _logs(node: ast.Call) -> bool:
    return ast.unparse(node.func).endswith((".exception", "print_exc"))


def _hands_on(node: ast.Call, error: str | None) -> bool:
    """Whether a call gives the error itself to a function that can look at it."""
    name = ast.unparse(node.func)
    given = any(isinstance(one, ast.Name) and one.id == error for one in node.args)
    return given and name not in ("str", "repr", "type", "isinstance", "print") and not name.startswith("logg")


def run(full: bool, mutant: bool = False) -> Figure:
    """Look at every module; the mutant is the same code with one line that breaks a rule."""
    tally = Tally()
    for module, path in modules().items():
        source = path.read_text(encoding="utf-8") + ("\nimport os\nos.system('true')\n" if mutant else "")
        with tally.case(module):
            if found := list(breaches(module, source)):
                raise AssertionError("; ".join(found))
    return tally.figure("F14", __doc__ or "", "0 breaches in every module")
