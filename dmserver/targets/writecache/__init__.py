"""The target writecache."""
