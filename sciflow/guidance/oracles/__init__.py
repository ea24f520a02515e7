"""By black boxes: values or forces without a gradient, at a budget of calls."""
