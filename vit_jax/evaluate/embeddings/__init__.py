"""Features of millions of images in a folder of shards, which any number of processes write.

The folder holds `_embeddings.json`, which says what is embedded (`folder.Manifest`); a shard for
each range of examples, `shard-000012.parquet`, or `shard-000012.features.npy` and its like beside
`shard-000012.csv`; and for each finished shard `_journal/000012.json`. A shard counts as written
when that last file is there, which comes after the shard and appears whole or not at all.
"""
