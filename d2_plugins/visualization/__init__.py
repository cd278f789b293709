"""Pictures of detections, datasets, proposals and attention."""
