"""Unit tests, under Nova's own fixtures (its fake libvirt)."""
