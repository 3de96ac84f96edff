package fuse

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// maxLoopTries bounds the loop devices that others take before this process does.
const maxLoopTries = 64

// attachLoop returns a loop device that reads a file. It goes when nobody uses it any
// more: at the latest when the process ends, unless it is mounted.
func attachLoop(path string) (*os.File, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer control.Close()
	for range maxLoopTries {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("a free loop device: %w", err)
		}
		device, err := setLoop(fmt.Sprintf("/dev/loop%d", n), file)
		if !errors.Is(err, unix.EBUSY) { // somebody else was first
			return device, err
		}
	}
	return nil, fmt.Errorf("a free loop device: others have taken %d", maxLoopTries)
}

func setLoop(name string, file *os.File) (*os.File, error) {
	device, err := os.OpenFile(name, os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	config := unix.LoopConfig{Fd: uint32(file.Fd()), Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_READ_ONLY | unix.LO_FLAGS_AUTOCLEAR}}
	if err := unix.IoctlLoopConfigure(int(device.Fd()), &config); err != nil {
		device.Close()
		return nil, fmt.Errorf("loop device %s: %w", name, err)
	}
	return device, nil
}
