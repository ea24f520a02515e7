"""Up the gradient of a log-density, of clean or of noisy samples."""
