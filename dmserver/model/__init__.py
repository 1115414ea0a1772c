"""The device-mapper itself: devices, tables, targets, physical devices. It knows no socket, no byte layout and no
clock of its own."""
