"""Pictures of the chapters on second order, samples and KFAC."""
