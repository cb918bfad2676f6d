"""Pictures of data, predictions and what happens inside the model."""
