"""A device-mapper in user space, behind the device-mapper control protocol."""
