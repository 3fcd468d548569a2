"""What is done with a trained model: accuracy, features, probes, figures."""
