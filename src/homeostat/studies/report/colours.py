"""Colours of groups, readable with any colour vision (Okabe and Ito), on light and on dark paper."""

LIGHT = ("#0072b2", "#d55e00", "#009e73", "#aa4499", "#b58900", "#56b4e9", "#5d6570", "#882255", "#44aa99")
DARK = ("#4aa8e0", "#f0844a", "#2fc49c", "#d98bc9", "#e6b93f", "#9bd3f5", "#a4adb8", "#d0779a", "#7fd6c8")
MARKS = ("circle", "square", "diamond", "triangle-up", "cross", "star", "triangle-down", "hexagon", "x")
