"""Time series on the core: forecast, impute, refine and synthesise with one model."""
