"""Names of a U-Net's inputs that mean something to more than one module here."""

RESIDUALS = "down_block_additional_residuals"
"""A ControlNet's: one per skip."""
MID_RESIDUAL = "mid_block_additional_residual"
ADAPTER_STATES = "down_intrablock_additional_residuals"
"""A T2I-Adapter's: one per down block."""
