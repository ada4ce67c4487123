"""Stored latents back to pixels. Exporters to trainers' formats will stand beside it."""
