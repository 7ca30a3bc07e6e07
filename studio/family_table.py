"""What each model family can do, as rows and as a table: read off the descriptors, so that no page can say anything else."""

from typing import Any

from studio.families import FAMILIES, defaults_of, pipelines_of
from studio.family import SECOND_STAGE
from studio.fitting import barred
from studio.schedulers import SCHEDULERS
from studio.spec import IMAGE2IMAGE, INPAINT, TEXT2IMAGE

TASKS = {TEXT2IMAGE: "text", IMAGE2IMAGE: "img2img", INPAINT: "inpaint", SECOND_STAGE: "the first stage"}
UNITS = {"controls": "ControlNet", "t2i_adapters": "T2I", "ip_adapters": "IP"}
COLUMNS = {
    "title": "family",
    "tasks": "from",
    "units": "units",
    "lora": "LoRA",
    "negative_prompt": "negative prompt counts",
    "size_step": "sides",
    "tokens": "prompt",
    "defaults": "usual: size, steps, CFG, sampler",
}


def family_rows() -> list[dict[str, Any]]:
    """Describe every family and every kind of model in it."""
    return [_row(name, kind) for name, family in FAMILIES.items() for kind in ("", *family.kinds)]


def _row(name: str, kind: str) -> dict[str, Any]:
    family, tasks = FAMILIES[name], pipelines_of(name, kind)
    off = set.intersection(*(set(barred(name, kind, task)) for task in tasks))
    fixed = family.fixed.get(kind, {})
    lora = family.lora and "loras" not in fixed
    negative = "" if "negative_prompt" in fixed else f"{family.guidance} above 1"
    samplers = [
        name
        for name, one in SCHEDULERS.items()
        if one.noise == (family.noise or "diffusion") and name not in family.refused_schedulers
    ]
    return {
        "name": name,
        "kind": kind,
        "title": family.title,
        "tasks": tuple(tasks),
        "pipelines": tasks,
        "units": tuple(unit for unit in UNITS if unit in family.units_of(kind)),
        "lora": lora,
        "lora_targets": family.lora_targets if lora else (),
        "negative_prompt": negative,
        "prompt_syntax": family.syntax,
        "tokens": family.text_limits[-1] if family.text_limits else 0 if "prompt" in fixed else None,
        "classes": family.prompts == "classes",
        "size_step": family.size_step,
        "schedulers": tuple(samplers),
        "not": tuple(sorted(off)),
        "fixed": fixed,
        "defaults": defaults_of(name, kind, {}),
        "variants": {one.title: one.defaults for one in family.variants if one.kind == "" and not kind},
    }


def family_table() -> str:
    """Return the rows as a Markdown table."""
    lines = [list(COLUMNS.values()), ["---"] * len(COLUMNS)]
    for row in family_rows():
        lines.append([_cell(row, column) for column in COLUMNS])
        lines += [
            [title, *[""] * (len(COLUMNS) - 2), _usual(row["defaults"] | own)] for title, own in row["variants"].items()
        ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(row: dict[str, Any], column: str) -> str:
    value = row[column]
    written = {
        "title": lambda: f"{value} ({row['kind']})" if row["kind"] else f"**{value}**",
        "tasks": lambda: ", ".join(TASKS[task] for task in value),
        "units": lambda: ", ".join(UNITS[unit] for unit in value) or "none",
        "lora": lambda: "yes" if value else "no",
        "negative_prompt": lambda: {"": "never", "guidance_scale above 1": "CFG above 1"}.get(
            value, "True CFG above 1"
        ),
        "size_step": lambda: f"x {value}",
        "tokens": lambda: (
            "a class" if row["classes"] else f"{value} tokens" if value else "any length" if value is None else "none"
        ),
        "defaults": lambda: _usual(value),
    }
    return written[column]()


def _usual(values: dict[str, Any]) -> str:
    size = f"{values['width']} x {values['height']}"
    return f"{size}, {values['num_inference_steps']}, {values['guidance_scale']:g}, {values['scheduler']}"
