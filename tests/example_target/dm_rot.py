"""rot: every byte on the device is the one seen here plus a number. Arguments: DEVICE NUMBER."""

from dmserver.model.dm_target import MapResult, Op, StatusType, Target


class Rot(Target):
    name, version = "rot", (1, 0, 0)
    num_flush_bios = 1

    def ctr(self, argv):
        if len(argv) != 2 or not argv[1].isdecimal() or not int(argv[1]) < 256:
            raise self.refuse("Expected a device and a number below 256")
        self.dev, self.number = self.get_device(argv[0]), int(argv[1])
        self.to_disk = bytes((byte + self.number) % 256 for byte in range(256))
        self.to_user = bytes((byte - self.number) % 256 for byte in range(256))

    def map(self, bio):
        bio.bdev, bio.sector = self.dev.bdev, self.offset(bio.sector)
        if bio.op is Op.WRITE:
            bio.data = memoryview(bytes(bio.data).translate(self.to_disk))
        return MapResult.REMAPPED

    def end_io(self, bio, error):
        if bio.op is Op.READ and not error:
            bio.data[:] = bytes(bio.data).translate(self.to_user)
        return error

    def status(self, kind):
        return f"{self.dev.number} {self.number}" if kind is StatusType.TABLE else ""

    def iterate_devices(self):
        yield self.dev, 0, self.len
