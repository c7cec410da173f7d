"""Keep one MLflow run per training. Tracking changes no result and stops no stage.

Two halves meet only in the folder `outbox/`:

- The stages' half imports no MLflow: `stages` writes a run to its `journal`; `outbox` starts the uploader.
- The uploader's half delivers journals: `uploader` finds what is due, `mlflow_writer` sends it to the `store`.
  `sync`, `ui` and `lookup` read the store too.
"""
