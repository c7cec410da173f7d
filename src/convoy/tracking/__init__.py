"""Keep one MLflow run per training, with what was measured of it. Tracking changes no result."""
