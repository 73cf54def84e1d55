// Command verifier checks what the log says with libraries that are not ours: an independent second opinion.
//
// It reads one JSON array of cases from standard input and prints an array of as many strings: empty where a
// case holds, otherwise why it does not.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/transparency-dev/formats/log"
	fnote "github.com/transparency-dev/formats/note"
	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// One case. Which fields count depends on Kind; bytes travel as base64.
type testCase struct {
	Kind      string // checkpoint, inclusion, consistency, tiles
	Origin    string
	LogKey    string   // verifier key
	Witnesses []string // verifier keys that must all have cosigned
	Note      string
	First     string // an earlier note
	URL       string // of the log: checkpoint and tiles below it
	Index     uint64
	Leaf      []byte // data of the leaf
	Proof     [][]byte
}

func main() {
	var cases []testCase
	decoder := json.NewDecoder(io.LimitReader(os.Stdin, 64<<20))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&cases); err != nil {
		fmt.Fprintln(os.Stderr, "cases:", err)
		os.Exit(2)
	}
	answers := make([]string, len(cases))
	for i, one := range cases {
		if err := check(one); err != nil {
			answers[i] = err.Error()
		}
	}
	if err := json.NewEncoder(os.Stdout).Encode(answers); err != nil {
		os.Exit(2)
	}
}

func check(c testCase) error {
	if c.Kind == "tiles" {
		return checkTiles(c)
	}
	checkpoint, err := open(c, c.Note)
	if err != nil {
		return err
	}
	switch c.Kind {
	case "checkpoint":
		return nil
	case "inclusion":
		leaf := rfc6962.DefaultHasher.HashLeaf(c.Leaf)
		return proof.VerifyInclusion(rfc6962.DefaultHasher, c.Index, checkpoint.Size, leaf, c.Proof, checkpoint.Hash)
	case "consistency":
		first, err := open(testCase{Origin: c.Origin, LogKey: c.LogKey}, c.First)
		if err != nil {
			return err
		}
		return proof.VerifyConsistency(
			rfc6962.DefaultHasher, first.Size, checkpoint.Size, c.Proof, first.Hash, checkpoint.Hash)
	}
	return fmt.Errorf("no kind of case: %q", c.Kind)
}

// open verifies the log's signature on a note, and a cosignature of every witness.
func open(c testCase, signed string) (*log.Checkpoint, error) {
	key, err := note.NewVerifier(c.LogKey)
	if err != nil {
		return nil, err
	}
	others := make([]note.Verifier, 0, len(c.Witnesses))
	for _, text := range c.Witnesses {
		witness, err := fnote.NewVerifierForCosignatureV1(text)
		if err != nil {
			return nil, err
		}
		others = append(others, witness)
	}
	checkpoint, _, opened, err := log.ParseCheckpoint([]byte(signed), c.Origin, key, others...)
	if err != nil {
		return nil, err
	}
	if found := len(opened.Sigs); found != 1+len(others) {
		return nil, fmt.Errorf("%d of %d signatures", found, 1+len(others))
	}
	return checkpoint, nil
}

// checkTiles reads the log as its public readers do: checkpoint and tiles over HTTP, every hash checked against
// the signed root, and a proof made of them for the leaf.
func checkTiles(c testCase) error {
	signed, err := get(c.URL + "/checkpoint")
	if err != nil {
		return err
	}
	checkpoint, err := open(c, string(signed))
	if err != nil {
		return err
	}
	tree := tlog.Tree{N: int64(checkpoint.Size)}
	copy(tree.Hash[:], checkpoint.Hash)
	reader := tlog.TileHashReader(tree, tiles{c.URL})
	hashes, err := reader.ReadHashes([]int64{tlog.StoredHashIndex(0, int64(c.Index))})
	if err != nil {
		return err
	}
	if hashes[0] != tlog.RecordHash(c.Leaf) {
		return errors.New("another leaf is there")
	}
	record, err := tlog.ProveRecord(tree.N, int64(c.Index), reader)
	if err != nil {
		return err
	}
	return tlog.CheckRecord(record, tree.N, tree.Hash, int64(c.Index), hashes[0])
}

// tiles implements tlog.TileReader.
type tiles struct{ url string }

func (t tiles) Height() int { return 8 }

func (t tiles) SaveTiles([]tlog.Tile, [][]byte) {}

func (t tiles) ReadTiles(wanted []tlog.Tile) ([][]byte, error) {
	found := make([][]byte, len(wanted))
	for i, tile := range wanted {
		// That package's own form of a path names the height too.
		path := strings.TrimPrefix(tile.Path(), "tile/8/")
		data, err := get(t.url + "/tile/" + path)
		if err != nil {
			return nil, err
		}
		found[i] = data
	}
	return found, nil
}

func get(url string) ([]byte, error) {
	client := http.Client{Timeout: 10 * time.Second}
	answer, err := client.Get(url)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s answers %s", url, answer.Status)
	}
	return io.ReadAll(io.LimitReader(answer.Body, 1<<20))
}
