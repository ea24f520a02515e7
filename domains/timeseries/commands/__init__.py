"""``sciflow forecast``, ``impute``, ``refine`` and ``synthesise``; modules import click alone."""
