"""The names of a mesh's axes, on which the layers and `vit_jax.devices` agree."""

# The examples of a batch are split over these two axes, in this order.
BATCH_AXES = ("data", "fsdp")
# The third one splits the heads of attention and the hidden units of MLPs.
AXES = (*BATCH_AXES, "model")
