// Sound: a lock, a new file with a checksum, fsync, rename, fsync of the directory, a second copy.
package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// --- lock

// lock holds the lock of a state for as long as the file that it returns is open.
func lock(path string) (*os.File, error) {
	file, err := os.OpenFile(path+".lock", os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, fmt.Errorf("another process works with %s: %w", path, err)
	}
	return file, nil
}

// --- end

// --- replace: import ("os"; "path/filepath")

// replace puts bytes in the place of a file, so that it is the old or the new one, and on disk.
func replace(path string, data []byte) (err error) {
	file, err := os.CreateTemp(filepath.Dir(path), ".state-*.tmp")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(file.Name())
		}
	}()
	_, err = file.Write(data)
	if err == nil {
		err = file.Sync()
	}
	if closed := file.Close(); err == nil {
		err = closed
	}
	if err == nil {
		err = os.Rename(file.Name(), path)
	}
	if err != nil {
		return err
	}
	directory, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer directory.Close()
	return directory.Sync()
}

// --- end

// --- save

// save saves twice, so that one copy can be damaged; it is saved when this returns.
func save(path string, sequence int, state any) error {
	text, err := json.Marshal(state)
	if err != nil {
		return err
	}
	rest := fmt.Sprintf("\"sequence\": %d, \"state\": %s}\n", sequence, text)
	data := []byte(fmt.Sprintf("{\"sha256\": \"%x\", %s", sha256.Sum256([]byte(rest)), rest))
	if err := replace(path, data); err != nil {
		return err
	}
	return replace(path+".copy", data)
}

// --- end

// --- load

type saved struct {
	Sequence int             `json:"sequence"`
	State    json.RawMessage `json:"state"`
}

// whole is what is in a file, if all of it is there.
func whole(path string) *saved {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	begin, rest, _ := bytes.Cut(data, []byte("\", "))
	if string(begin) != fmt.Sprintf("{\"sha256\": \"%x", sha256.Sum256(rest)) {
		return nil
	}
	found := new(saved)
	if json.Unmarshal(data, found) != nil {
		return nil
	}
	return found
}

// load gives the newest state that is whole; it fails if there is none, though there was one. What is
// damaged is kept aside.
func load(path string, fallback json.RawMessage) (json.RawMessage, error) {
	mine, other := whole(path), whole(path+".copy")
	if mine == nil && other == nil {
		for _, name := range []string{path, path + ".copy"} {
			if _, err := os.Lstat(name); !errors.Is(err, os.ErrNotExist) {
				return nil, fmt.Errorf("%s and its copy are damaged", path)
			}
		}
		fmt.Fprintln(os.Stderr, "there is no state: beginning anew")
		return fallback, nil
	}
	if mine == nil || other != nil && other.Sequence > mine.Sequence {
		fmt.Fprintf(os.Stderr, "%s is damaged or old: taking its copy\n", path)
		err := os.Rename(path, fmt.Sprintf("%s.damaged-%d", path, time.Now().UnixNano()))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
		return other.State, nil
	}
	return mine.State, nil
}

// --- end

type position struct {
	Symbol   string `json:"symbol"`
	Quantity int    `json:"quantity"`
}

func sample(version int) any {
	positions := []position{}
	// Every other version is shorter, so that an overwrite without truncation shows.
	for n := 0; n < 300-20*(version%2); n++ {
		positions = append(positions, position{fmt.Sprintf("SYM%04d", n), n + version})
	}
	return map[string]any{"version": version, "positions": positions}
}

func run() error {
	held, err := lock("state.json")
	if err != nil {
		return err
	}
	defer held.Close()
	left, _ := filepath.Glob(".state-*.tmp")
	for _, name := range left {
		os.Remove(name) // a process was killed in the middle of a save
	}
	state, err := load("state.json", json.RawMessage("null"))
	if err != nil {
		return err
	}
	if len(os.Args) > 1 && os.Args[1] == "load" {
		fmt.Println(string(state))
		return nil
	}
	for version := 1; version <= 4; version++ {
		if err := save("state.json", version, sample(version)); err != nil {
			return err
		}
		fmt.Println("saved", version)
	}
	return nil
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
