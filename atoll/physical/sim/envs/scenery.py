"""What scenes under the sky share."""

from __future__ import annotations

import mujoco


def add_sky(spec: mujoco.MjSpec) -> None:
    """Blue, paler towards the horizon."""
    spec.add_texture(
        name="sky", type=mujoco.mjtTexture.mjTEXTURE_SKYBOX, builtin=mujoco.mjtBuiltin.mjBUILTIN_GRADIENT,
        rgb1=[0.75, 0.85, 0.95], rgb2=[0.35, 0.55, 0.8], width=64, height=384,
    )  # fmt: skip
