"""Preprocessors: what turns a picture into a control picture, by A1111's names, and the weights that each needs.

A new one is a line in `PREPROCESSORS`. The classes are controlnet-aux's (0.0.10), which `studio.engine.controls` imports when one is
used. Nothing is downloaded: the weights are files that people put into a folder, pinned by sha256 because they exist only as pickles.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from studio.errors import InvalidRequest, shown

RESOLUTION_MIN, RESOLUTION_MAX = 64, 2048  # of the annotator's short side, in pixels
ANY = "any"  # kind of a preprocessor whose result fits every ControlNet


class Weight(NamedTuple):
    """A file of weights. `file` is its path in the repository; in the local folder it lies under its bare name."""

    repo: str
    file: str
    sha256: str

    @property
    def name(self) -> str:
        """Bare file name."""
        return self.file.rpartition("/")[2]

    @property
    def source(self) -> str:
        """Address of the folder that has the file."""
        folder = self.file.rpartition("/")[0]
        return f"https://huggingface.co/{self.repo}" + (f"/tree/main/{folder}" if folder else "")


@dataclass(frozen=True)
class Option:
    """A number that a preprocessor takes. `argument` is controlnet-aux's spelling, if it is another one."""

    name: str
    label: str
    default: float
    minimum: float
    maximum: float
    step: float
    argument: str = ""

    @property
    def whole(self) -> bool:
        """Whether only whole numbers make sense."""
        return self.step >= 1


@dataclass(frozen=True)
class Preprocessor:
    """A preprocessor.

    Attributes:
        title: as the page shows it.
        kind: the control type that a ControlNet must have been trained for, or `ANY`.
        class_name: in controlnet_aux, or "" if none is needed.
        weights: the files it reads; the first is the one that `from_pretrained` calls `filename`.
        note: one sentence for people.
        arguments: what this variant always passes to the class.
    """

    title: str
    kind: str
    class_name: str = ""
    weights: tuple[Weight, ...] = ()
    options: tuple[Option, ...] = ()
    note: str = ""
    arguments: dict[str, bool] = field(default_factory=dict)


ANNOTATORS = "lllyasviel/Annotators"
HED = (Weight(ANNOTATORS, "ControlNetHED.pth", "5ca93762ffd68a29fee1af9d495bf6aab80ae86f08905fb35472a083a4c7a8fa"),)
PIDINET = (
    Weight(ANNOTATORS, "table5_pidinet.pth", "80860ac267258b5f27486e0ef152a211d0b08120f62aeb185a050acc30da486c"),
)
LINEART = (
    Weight(ANNOTATORS, "sk_model.pth", "c686ced2a666b4850b4bb6ccf0748031c3eda9f822de73a34b8979970d90f0c6"),
    Weight(ANNOTATORS, "sk_model2.pth", "30a534781061f34e83bb9406b4335da4ff2616c95d22a585c1245aa8363e74e0"),
)
ANIME = (Weight(ANNOTATORS, "netG.pth", "ccabdcc3f5cf3c07cf65d58776acb21df7dfda825cdc70c9766a93fd62bfc488"),)
MIDAS = (
    Weight(
        ANNOTATORS, "dpt_hybrid-midas-501f0c75.pt", "501f0c75b3bca7daec6b3682c5054c09b366765aef6fa3a09d03a5cb4b230853"
    ),
)
ZOE = (Weight(ANNOTATORS, "ZoeD_M12_N.pt", "c97f94c4d53c5b788af46c5da0462262aebb37ea116fd70014bcbba93146c33b"),)
BAE = (Weight(ANNOTATORS, "scannet.pt", "03dbf1600c51ee3d45c29f77b77bf1a3b7a24c3452dba62a4ae658f37330c209"),)
OPENPOSE = (
    Weight(ANNOTATORS, "body_pose_model.pth", "25a948c16078b0f08e236bda51a385d855ef4c153598947c28c0d47ed94bb746"),
    Weight(ANNOTATORS, "hand_pose_model.pth", "b76b00d1750901abd07b9f9d8c98cc3385b8fe834a26d4b4f0aad439e75fc600"),
    Weight(ANNOTATORS, "facenet.pth", "8beb52e548624ffcc4aed12af7aee7dcbfaeea420c75609fee999fe7add79d43"),
)
MLSD = (
    Weight(ANNOTATORS, "mlsd_large_512_fp32.pth", "5696f168eb2c30d4374bbfd45436f7415bb4d88da29bea97eea0101520fba082"),
)
TEED = (Weight("fal-ai/teed", "5_model.pth", ""),)
MTEED = (
    Weight(
        "TheMistoAI/MistoLine", "Anyline/MTEED.pth", "a3c2d8a8ce9422555c787160bd46362d761325a565333c0e3f6a53e0bae2abdb"
    ),
)

INTENSITY = Option("intensity_threshold", "Intensity threshold", 8, 0, 255, 1)
CANNY_OPTIONS = (
    Option("low_threshold", "Low threshold", 100, 1, 255, 1),
    Option("high_threshold", "High threshold", 200, 1, 255, 1),
)
LINEART_OPTIONS = (Option("gaussian_sigma", "Gaussian sigma", 6.0, 0.1, 30, 0.1, "guassian_sigma"), INTENSITY)
ANYLINE_OPTIONS = (
    Option("gaussian_sigma", "Gaussian sigma", 2.0, 0.1, 30, 0.1, "guassian_sigma"),
    Option("intensity_threshold", "Intensity threshold", 3, 0, 255, 1),
)
MLSD_OPTIONS = (
    Option("value_threshold", "Value threshold", 0.1, 0.01, 2, 0.01, "thr_v"),
    Option("distance_threshold", "Distance threshold", 0.1, 0.01, 20, 0.01, "thr_d"),
)
SAFE_STEPS = (Option("safe_steps", "Safe steps", 2, 0, 10, 1),)
SHUFFLE_SEED = (Option("seed", "Seed", 0, 0, 2**32 - 1, 1),)
CMU = "Its licence (CMU's) is for non-commercial use only."

PREPROCESSORS: dict[str, Preprocessor] = {
    "none": Preprocessor("None", ANY, note="The picture is a control picture already."),
    "invert": Preprocessor("Invert", ANY, note="For black lines on white: most ControlNets want white on black."),
    "canny": Preprocessor("Canny", "canny", "CannyDetector", (), CANNY_OPTIONS, "Hard edges of one pixel."),
    "lineart_standard": Preprocessor(
        "Lineart standard", "lineart", "LineartStandardDetector", (), LINEART_OPTIONS, "For drawings on a light ground."
    ),
    "lineart": Preprocessor("Lineart realistic", "lineart", "LineartDetector", LINEART, (), "Fine lines of photos."),
    "lineart_coarse": Preprocessor(
        "Lineart coarse", "lineart", "LineartDetector", LINEART, (), "Few, rough lines.", {"coarse": True}
    ),
    "lineart_anime": Preprocessor(
        "Lineart anime", "lineart", "LineartAnimeDetector", ANIME, (), "Lines of anime pictures."
    ),
    "softedge_hed": Preprocessor("Soft edge HED", "softedge", "HEDdetector", HED, (), "Soft outlines."),
    "softedge_hedsafe": Preprocessor(
        "Soft edge HED safe", "softedge", "HEDdetector", HED, (), "Outlines in three steps of grey.", {"safe": True}
    ),
    "softedge_pidinet": Preprocessor("Soft edge PiDiNet", "softedge", "PidiNetDetector", PIDINET, (), "Soft outlines."),
    "softedge_pidisafe": Preprocessor(
        "Soft edge PiDiNet safe",
        "softedge",
        "PidiNetDetector",
        PIDINET,
        (),
        "Outlines in three steps of grey.",
        {"safe": True},
    ),
    "teed": Preprocessor(
        "Soft edge TEED",
        "softedge",
        "TEEDdetector",
        TEED,
        SAFE_STEPS,
        "Clean outlines, fast; the sha256 of its weights is not known here, so only their being plain weights is checked.",
    ),
    "anyline": Preprocessor(
        "Soft edge Anyline", "softedge", "AnylineDetector", MTEED, ANYLINE_OPTIONS, "Outlines and fine lines together."
    ),
    "scribble_hed": Preprocessor(
        "Scribble HED", "scribble", "HEDdetector", HED, (), "Thick strokes along outlines.", {"scribble": True}
    ),
    "scribble_pidinet": Preprocessor(
        "Scribble PiDiNet",
        "scribble",
        "PidiNetDetector",
        PIDINET,
        (),
        "Thick strokes along outlines.",
        {"scribble": True},
    ),
    "depth_midas": Preprocessor("Depth MiDaS", "depth", "MidasDetector", MIDAS, (), "Near is white."),
    "depth_zoe": Preprocessor("Depth Zoe", "depth", "ZoeDetector", ZOE, (), "Near is white; slow without a GPU."),
    "normal_bae": Preprocessor("Normal BAE", "normal", "NormalBaeDetector", BAE, (), "Directions of surfaces."),
    "openpose": Preprocessor("OpenPose", "openpose", "OpenposeDetector", OPENPOSE, (), f"Bodies. {CMU}"),
    "openpose_hand": Preprocessor(
        "OpenPose hand",
        "openpose",
        "OpenposeDetector",
        OPENPOSE,
        (),
        f"Bodies and hands. {CMU}",
        {"include_hand": True},
    ),
    "openpose_face": Preprocessor(
        "OpenPose face",
        "openpose",
        "OpenposeDetector",
        OPENPOSE,
        (),
        f"Bodies and faces. {CMU}",
        {"include_face": True},
    ),
    "openpose_faceonly": Preprocessor(
        "OpenPose face only",
        "openpose",
        "OpenposeDetector",
        OPENPOSE,
        (),
        f"Faces. {CMU}",
        {"include_body": False, "include_face": True},
    ),
    "openpose_full": Preprocessor(
        "OpenPose full",
        "openpose",
        "OpenposeDetector",
        OPENPOSE,
        (),
        f"Bodies, hands and faces. {CMU}",
        {"include_hand": True, "include_face": True},
    ),
    "mlsd": Preprocessor("MLSD", "mlsd", "MLSDdetector", MLSD, MLSD_OPTIONS, "Straight lines: rooms and buildings."),
    "shuffle": Preprocessor(
        "Shuffle", "shuffle", "ContentShuffleDetector", (), SHUFFLE_SEED, "The picture's colours, swirled."
    ),
}


def find_preprocessor(name: str) -> Preprocessor:
    """Return the entry of `PREPROCESSORS` with this name.

    Raises:
        InvalidRequest: if there is none.
    """
    if name not in PREPROCESSORS:
        known = ", ".join(PREPROCESSORS)
        raise InvalidRequest("preprocessor", f"preprocessor={shown(name)} is not known; use one of: {known}")
    return PREPROCESSORS[name]


def option_values(name: str, options: Mapping[str, float]) -> dict[str, float]:
    """Return a value for each option of a preprocessor: the given one, else the default.

    Raises:
        InvalidRequest: for an unknown preprocessor or option, or a value outside of its range.
    """
    known = {option.name: option for option in find_preprocessor(name).options}
    for key in options:
        if key not in known:
            allowed = f"it has {', '.join(known)}" if known else "it has none"
            raise InvalidRequest("preprocessor", f"preprocessor={name!r} has no option {shown(key)}; {allowed}")
    return {key: _checked(name, option, options.get(key, option.default)) for key, option in known.items()}


def _checked(name: str, option: Option, value: float) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not option.minimum <= value <= option.maximum or (option.whole and value != int(value)):
        kind = "a whole number" if option.whole else "a number"
        raise InvalidRequest(
            "preprocessor",
            f"preprocessor={name!r}: {option.name}={shown(value)} must be {kind} from {option.minimum:g} to {option.maximum:.10g}",
        )
    return int(value) if option.whole else float(value)


def weights_present(name: str, folder: Path) -> bool:
    """Say whether all files that a preprocessor reads are in the folder.

    Raises:
        InvalidRequest: for an unknown preprocessor.
    """
    return not _missing(name, folder)


def missing_message(name: str, folder: Path) -> str:
    """Say in one sentence which files are missing, where they come from and where to put them; "" if none is.

    Raises:
        InvalidRequest: for an unknown preprocessor.
    """
    missing = _missing(name, folder)
    if not missing:
        return ""
    names, them = ", ".join(weight.name for weight in missing), "it" if len(missing) == 1 else "them"
    place = f"models/{folder.name} of the data folder"  # strangers, who may read this, are told no path of the server
    return f"preprocessor={name!r} needs {names} in {place}; copy {them} from {missing[0].source}"


def _missing(name: str, folder: Path) -> list[Weight]:
    return [weight for weight in find_preprocessor(name).weights if not (folder / weight.name).is_file()]
