"""The device-mapper control protocol: Linux's binary form, NetBSD's property-list form, and the way between."""
