"""Who a synthetic person is: the proportions and colours that all photos of one identity share.

Lengths are in head units: 1.0 is half the width of an average face (about 70 mm). The head's frame has its origin
between the eyes, x to the image's right, y down, z towards the camera.
"""

from __future__ import annotations

from dataclasses import dataclass

from preprocess.synthetic.rng import Draws

Colour = tuple[float, float, float]

_SKIN_TONES: tuple[Colour, ...] = (
    (238, 201, 180), (228, 184, 156), (213, 164, 132), (188, 138, 104), (152, 106, 78), (118, 80, 60), (90, 60, 47),
)  # fmt: skip
_HAIR_COLOURS: tuple[Colour, ...] = (
    (26, 22, 21), (46, 33, 26), (74, 50, 34), (104, 70, 43), (148, 106, 62), (196, 160, 104), (132, 62, 34),
)  # fmt: skip
_IRIS_COLOURS: tuple[Colour, ...] = (
    (52, 32, 22), (78, 48, 28), (112, 78, 42), (104, 104, 58), (84, 116, 92), (92, 122, 150), (128, 142, 152),
)  # fmt: skip


@dataclass(frozen=True)
class Identity:
    """One person's lasting traits; lengths in head units, colours in sRGB 0..255, the rest in 0..1 unless said."""

    eye_x: float  # half the interocular distance
    eye_width: float  # half the width of the eye's opening
    eye_open: float  # half the height of the eye's opening
    eye_tilt: float  # slope; positive lifts the outer corner
    lid_crease: float  # how deep the crease of the upper lid is
    socket: float  # depth of the eye sockets
    iris_radius: float
    iris: Colour
    brow_y: float
    brow_arch: float
    brow_tilt: float
    brow_thickness: float
    brow_length: float
    brow_gap: float  # from the middle of the face to the brow's inner end
    brow_density: float
    brow_ridge: float
    nose_length: float  # y of the nose's base
    nose_width: float  # half the width at the wings
    nose_height: float  # how far the tip stands out
    nose_slimness: float  # half the width of the ridge
    bridge_height: float
    nose_hump: float
    mouth_y: float
    mouth_width: float  # half the width at rest
    upper_lip: float
    lower_lip: float
    cupid: float
    lip_redness: float
    chin_y: float
    chin_width: float
    chin_forward: float
    jaw_width: float
    cheek_width: float
    cranium_width: float
    cheekbone: float
    cheek_hollow: float
    hairline_y: float
    temples: float  # how far the hairline recedes at the temples
    ear_size: float
    neck_width: float
    asymmetry: float  # shift of one side's features
    skin: Colour
    melanin: float
    blush: float
    freckles: float
    moles: tuple[tuple[float, float, float], ...]  # x, y, radius
    age: float
    beard: float  # how much beard grows; 0 for none
    hair: Colour
    hair_kind: int  # 0 straight, 1 wavy, 2 curly
    hair_length: float  # the usual length
    makeup: float
    face_texture: int  # key of the skin's mottling


def sample_identity(seed: int, identity: int) -> Identity:
    """Draw one person; a pure function of its arguments."""
    d = Draws(seed, identity)
    melanin = d.uniform() ** 1.2
    tone = melanin * (len(_SKIN_TONES) - 1)
    low = min(int(tone), len(_SKIN_TONES) - 2)
    mixed = [a + (b - a) * (tone - low) for a, b in zip(_SKIN_TONES[low], _SKIN_TONES[low + 1], strict=True)]
    warmth = d.normal(0.0, 0.03)
    skin = (mixed[0] * (1 + 0.4 * warmth), mixed[1], mixed[2] * (1 - warmth))
    age = d.uniform()
    male = d.chance(0.5)
    hair = _HAIR_COLOURS[d.integer(3 if melanin > 0.55 else len(_HAIR_COLOURS))]
    grey = max(0.0, age - 0.7) * 3.0 * d.uniform() ** 0.5
    hair = tuple(h + (g - h) * min(0.9, grey) for h, g in zip(hair, (176, 174, 172), strict=True))
    iris = _IRIS_COLOURS[d.integer(2 if melanin > 0.55 else len(_IRIS_COLOURS))]
    nose_length = d.normal(0.655, 0.06)
    mouth_y = nose_length + d.normal(0.34, 0.05)
    moles = tuple((d.uniform(-0.75, 0.75), d.uniform(-0.7, 1.3), d.uniform(0.016, 0.032)) for _ in range(d.integer(4)))
    return Identity(
        eye_x=d.normal(0.466, 0.04),
        eye_width=d.normal(0.212, 0.02),
        eye_open=d.normal(0.088, 0.015),
        eye_tilt=d.normal(0.05, 0.07),
        lid_crease=d.uniform(0.1, 1.0),
        socket=d.normal(0.12, 0.04),
        iris_radius=d.normal(0.094, 0.006),
        iris=iris,
        brow_y=d.normal(-0.30, 0.04),
        brow_arch=d.normal(0.05, 0.03),
        brow_tilt=d.normal(0.08, 0.06),
        brow_thickness=d.normal(0.052 if male else 0.04, 0.011),
        brow_length=d.normal(0.46, 0.04),
        brow_gap=d.normal(0.17, 0.035),
        brow_density=d.uniform(0.55, 0.95),
        brow_ridge=d.normal(0.07 if male else 0.035, 0.02),
        nose_length=nose_length,
        nose_width=d.normal(0.225 + 0.05 * melanin, 0.03),
        nose_height=d.normal(0.36, 0.05),
        nose_slimness=d.normal(0.13, 0.02),
        bridge_height=d.normal(0.17 - 0.05 * melanin, 0.04),
        nose_hump=d.normal(0.01, 0.03),
        mouth_y=mouth_y,
        mouth_width=d.normal(0.365, 0.04),
        upper_lip=d.normal(0.07 + 0.03 * melanin, 0.02),
        lower_lip=d.normal(0.10 + 0.03 * melanin, 0.022),
        cupid=d.uniform(),
        lip_redness=d.uniform(),
        chin_y=mouth_y + d.normal(0.55, 0.055),
        chin_width=d.normal(0.5 if male else 0.42, 0.06),
        chin_forward=d.normal(0.02, 0.04),
        jaw_width=d.normal(0.83 if male else 0.77, 0.06),
        cheek_width=d.normal(0.975, 0.04),
        cranium_width=d.normal(1.05, 0.035),
        cheekbone=d.normal(0.07, 0.03),
        cheek_hollow=d.normal(0.03, 0.03),
        hairline_y=d.normal(-0.95, 0.07) - (0.12 * age if male else 0.0),
        temples=d.uniform(0.0, 0.2) + (0.15 * age if male else 0.0),
        ear_size=d.normal(0.33, 0.03),
        neck_width=d.normal(0.72 if male else 0.6, 0.04),
        asymmetry=d.normal(0.0, 0.015),
        skin=skin,
        melanin=melanin,
        blush=d.uniform(),
        freckles=d.uniform() if melanin < 0.5 and d.chance(0.35) else 0.0,
        moles=moles,
        age=age,
        beard=d.uniform() if male else 0.0,
        hair=hair,
        hair_kind=d.integer(3) if melanin > 0.7 else d.integer(2),
        hair_length=d.uniform(0.0, 0.45) if male else d.uniform(0.3, 1.0),
        makeup=0.0 if male else d.uniform(),
        face_texture=d.integer(1 << 30),
    )
