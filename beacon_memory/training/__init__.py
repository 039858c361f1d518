"""Making a memory better: fitting anchors, training beacons."""
