"""Times and costs of the components, and the check of a CUDA device (``d2-plugins benchmark``)."""
