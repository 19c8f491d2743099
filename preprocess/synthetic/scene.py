"""What one photo is: pose, camera, light, expression and grooming, all of which change between a person's photos."""

from __future__ import annotations

import math
from dataclasses import dataclass

from preprocess.synthetic.identity import Colour, Identity
from preprocess.synthetic.rng import Draws

MAX_YAW, MAX_PITCH, MAX_ROLL = 30.0, 15.0, 20.0  # degrees


@dataclass(frozen=True)
class Light:
    """Linear-light description: one key light, and an ambient that is linear in the surface normal."""

    key_direction: Colour  # unit vector in the camera's frame, towards the light
    key_colour: Colour
    ambient: tuple[Colour, Colour, Colour, Colour]  # constant, then along x, y and z of the normal; RGB each
    softness: float  # how far the key wraps round a surface


@dataclass(frozen=True)
class Expression:
    """Momentary shape of the face; 0 is rest."""

    smile: float  # -0.3..1
    mouth_open: float  # 0..1
    brow_raise: float  # head units, positive lifts
    eyes_open: float  # factor on the lids' opening
    gaze_x: float  # head units, shift of the iris
    gaze_y: float


@dataclass(frozen=True)
class Grooming:
    """Hair, beard and things worn on the day."""

    hair_length: float  # 0 cropped .. 1 below the shoulders
    volume: float
    fringe: float  # 0 none .. 1 down to the brows
    parting: float  # x of the parting
    sweep: float  # how far the hairline leans to one side
    hair_kind: int
    hair: Colour
    hat: int  # 0 none, 1 beanie, 2 headband
    hat_colour: Colour
    beard: float
    lip_tint: float
    glasses: float  # opacity of a frame, 0 for none


@dataclass(frozen=True)
class Scene:
    """Everything a renderer needs to know of one photo; angles in degrees, image lengths in fractions of the size."""

    yaw: float  # positive turns the face to the image's right
    pitch: float  # positive looks down
    roll: float  # positive turns clockwise in the image
    centre_x: float
    centre_y: float
    scale: float  # image size fraction of one head unit
    distance: float  # camera to head, head units
    light: Light
    expression: Expression
    grooming: Grooming
    exposure: float
    white_balance: Colour
    contrast: float
    vignette: float
    focus_blur_px: float  # at 168 px
    motion_blur_px: float
    motion_angle: float
    grain: float  # deviation in 8-bit levels
    skin_shine: float
    redness: float  # flush of the skin


def sample_scene(draws: Draws, person: Identity) -> Scene:
    """Draw the photo's conditions from its own stream."""
    d = draws
    scale = d.uniform(0.215, 0.268)
    return Scene(
        yaw=d.uniform(-MAX_YAW, MAX_YAW),
        pitch=d.uniform(-MAX_PITCH, MAX_PITCH),
        roll=d.uniform(-MAX_ROLL, MAX_ROLL),
        centre_x=0.5 + d.uniform(-0.06, 0.06),
        centre_y=0.44 + d.uniform(-0.04, 0.04),
        scale=scale,
        distance=d.uniform(6.0, 16.0),
        light=_sample_light(d),
        expression=_sample_expression(d),
        grooming=_sample_grooming(d, person),
        exposure=2.0 ** d.normal(0.0, 0.28),
        white_balance=(1.0 + d.normal(0.0, 0.05), 1.0, 1.0 + d.normal(0.0, 0.06)),
        contrast=d.uniform(0.85, 1.2),
        vignette=d.uniform(0.0, 0.35),
        focus_blur_px=d.uniform(0.25, 0.6) if d.chance(0.7) else d.uniform(0.6, 1.15),
        motion_blur_px=d.uniform(2.0, 4.0) if d.chance(0.1) else 0.0,
        motion_angle=d.uniform(0.0, math.pi),
        grain=d.uniform(0.8, 4.5),
        skin_shine=d.uniform(0.2, 1.0),
        redness=d.uniform(-0.02, 0.05),
    )


def _sample_light(d: Draws) -> Light:
    azimuth, elevation = math.radians(d.normal(0.0, 38.0, 1.9)), math.radians(d.uniform(0.0, 55.0))
    direction = (
        math.sin(azimuth) * math.cos(elevation),
        -math.sin(elevation),
        math.cos(azimuth) * math.cos(elevation),
    )
    warmth = d.normal(0.0, 0.1)
    strength = d.uniform(0.35, 0.95)
    key = (strength * (1 + warmth), strength, strength * (1 - 1.3 * warmth))
    level = 1.02 - 0.72 * strength + d.uniform(-0.08, 0.1)
    cast = d.normal(-0.4 * warmth, 0.05)
    constant = (level * (1 + cast), level, level * (1 - cast))
    side = d.normal(0.0, 0.2) * level
    side_cast = d.normal(0.0, 0.12)
    above = d.uniform(0.1, 0.4) * level
    ambient = (
        constant,
        (side * (1 + side_cast), side, side * (1 - side_cast)),
        (-above * (1 - 0.5 * cast), -above, -above * (1 + 0.5 * cast)),
        (0.12 * level, 0.12 * level, 0.12 * level),
    )
    return Light(direction, key, ambient, d.uniform(0.0, 0.35))


def _sample_expression(d: Draws) -> Expression:
    smile = d.uniform(0.2, 1.0) if d.chance(0.5) else d.uniform(-0.3, 0.2)
    return Expression(
        smile=smile,
        mouth_open=d.uniform(0.15, 1.0) if d.chance(0.35) else 0.0,
        brow_raise=d.normal(0.0, 0.025),
        eyes_open=max(0.35, d.normal(0.98, 0.14) - 0.12 * max(0.0, smile)),
        gaze_x=d.normal(0.0, 0.025),
        gaze_y=d.normal(0.0, 0.01),
    )


def _sample_grooming(d: Draws, person: Identity) -> Grooming:
    length = d.uniform() if d.chance(0.3) else min(1.0, max(0.0, person.hair_length + d.normal(0.0, 0.15)))
    if person.beard and length > 0.6 and not d.chance(0.25):
        length *= 0.5
    shade = 1.0 + d.normal(0.0, 0.12)
    hair = (person.hair[0] * shade, person.hair[1] * shade, person.hair[2] * shade)
    if d.chance(0.06):  # dyed
        hair = tuple(255 * c for c in d.colour(0.15, 0.5, 0.7))  # type: ignore[assignment]
    hat = d.integer(2) + 1 if d.chance(0.12) else 0
    return Grooming(
        hair_length=length,
        volume=d.uniform(0.06, 0.26) + (0.08 if person.hair_kind == 2 else 0.0),
        fringe=d.uniform(0.4, 1.0) if d.chance(0.25) else d.uniform(0.0, 0.2),
        parting=d.normal(0.0, 0.3),
        sweep=d.normal(0.0, 0.16),
        hair_kind=person.hair_kind if d.chance(0.8) else d.integer(2),
        hair=hair,
        hat=hat,
        hat_colour=d.colour(0.1, 0.7, 0.35),
        beard=person.beard * d.uniform(0.0, 1.2),
        lip_tint=person.makeup * d.uniform(),
        glasses=d.uniform(0.6, 0.95) if d.chance(0.08) else 0.0,
    )
