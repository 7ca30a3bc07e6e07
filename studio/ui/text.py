"""Every text of the page that is not a field's own label or help (those lie with the field, in `spec.py`)."""

TEXT = {
    "title": "Studio",
    "tab.generate": "Generate",
    "tab.gallery": "Gallery",
    "tab.tools": "Tools",
    "generate": "Generate",
    "interrupt": "Interrupt",
    "skip": "Skip",
    "forever": "Generate forever",
    "forever.help": "Queue the next picture, with a new seed, as soon as one is done; Interrupt ends it.",
    "seed.random": "Random",
    "seed.reuse": "Reuse last",
    "group.size": "Size and count",
    "group.sampling": "Sampling",
    "group.more": "More",
    "group.hires": "Hires. fix",
    "group.variation": "Variation seed",
    "group.image": "Image (img2img, inpaint)",
    "group.inpaint": "Inpaint",
    "group.outpaint": "Outpaint",
    "image.help": "Drop a picture to start from it. Paint over what shall be drawn anew: the rest stays as it is.",
    "image.open": "Open file (also HEIC)",
    "image.size": "Use its size",
    "image.remove": "Remove",
    "image.mask": "Mask of your own: white is drawn anew",
    "image.none": "There is no picture yet; drop one first.",
    "queue": "Queue",
    "queue.empty": "Nothing waits.",
    "offline": "No connection to Studio; trying again …",
    "empty": "Your picture appears here, step by step, and is saved.",
    "demo": (
        "**This is the demo model**: it draws coloured shapes and needs no download. Try one of the examples below. "
        "For photos or art, put a model in diffusers' folder format into `{folder}` and choose it above."
    ),
    "unknown": "This model does not know: {words}. It draws colours, shapes, sizes, positions and counts.",
    "negative.ignored": "The negative prompt is ignored because CFG Scale is 1.",
    "gallery.none": "No pictures here yet: generate one first, or change the filters.",
    "gallery.search": "Search in prompts",
    "tools.info": "PNG Info: drop a picture to read how it was made (Studio, A1111 and ComfyUI files).",
    "tools.nothing": "This picture does not say how it was made.",
    "tools.send": "Send to Generate",
}

EXAMPLES = (
    "a red circle on a blue background",
    "a big yellow star on a purple background",
    "three green hearts on a white background",
    "an orange square to the left of a cyan diamond on a black background",
    "a pink ring on a green background, striped style",
)
