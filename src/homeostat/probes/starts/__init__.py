"""Where runs from several starts end: `align_starts`."""
