"""Colours of the difficulties: one sequential scale, readable with any colour vision, on light and on dark paper.

And colours of models and groups, which have no order (Okabe and Ito).
"""

MODELS_LIGHT = ("#0072b2", "#d55e00", "#009e73", "#aa4499", "#b58900", "#56b4e9", "#5d6570", "#882255", "#44aa99")
MODELS_DARK = ("#4aa8e0", "#f0844a", "#2fc49c", "#d98bc9", "#e6b93f", "#9bd3f5", "#a4adb8", "#d0779a", "#7fd6c8")

# Anchors of the viridis scale, which falls evenly in lightness. The hardest difficulty gets the end that stands out
# most from the paper, and the end that would vanish into the paper is left out.
_SCALE = ("#440154", "#482878", "#3e4989", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725")
_LIGHT = (0.76, 0.0)
_DARK = (0.36, 1.0)


def difficulty_colours(count: int, *, dark: bool) -> list[str]:
    """`count` colours from the easiest to the hardest difficulty.

    Example:
        >>> difficulty_colours(2, dark=True)
        ['#2e6e8e', '#fde725']
        >>> difficulty_colours(1, dark=False)
        ['#440154']
    """
    start, end = _DARK if dark else _LIGHT
    if count == 1:
        return [_at(end)]
    return [_at(start + (end - start) * place / (count - 1)) for place in range(count)]


def _at(place: float) -> str:
    scaled = place * (len(_SCALE) - 1)
    left = min(int(scaled), len(_SCALE) - 2)
    part = scaled - left
    pairs = zip(_channels(_SCALE[left]), _channels(_SCALE[left + 1]), strict=True)
    return "#" + "".join(f"{round(a + (b - a) * part):02x}" for a, b in pairs)


def _channels(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)
