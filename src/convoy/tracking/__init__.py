"""Keep one MLflow run per training, with what was measured of it. Tracking changes no result, and stops none.

Two sides that meet in `outbox/` alone:

- What a stage imports writes to a journal on the disk and knows no MLflow: `stages`, `opening`, `run`,
  `journal`, `snapshot`, `outbox`, `settings`.
- What the courier imports delivers the journals: `courier`, `rounds`, `delivery`, `values`, `names`,
  `model`, `sampling`, `alive`, `store`. `sync` and the commands that read runs are on this side too.
"""
