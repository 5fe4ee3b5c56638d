// Reads Kubernetes objects as JSON, one after the other, and prints for each what the kstatus
// library makes of it, which Helm and Flux wait by: a status and a message, as JSON on a line.
package main

import (
	"encoding/json"
	"errors"
	"io"
	"log"
	"os"

	"github.com/fluxcd/cli-utils/pkg/kstatus/status"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

func main() {
	in, out := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	for {
		var raw json.RawMessage
		if err := in.Decode(&raw); errors.Is(err, io.EOF) {
			return
		} else if err != nil {
			log.Fatal(err)
		}
		// As a client reads it: whole numbers are integers.
		object := &unstructured.Unstructured{}
		if err := object.UnmarshalJSON(raw); err != nil {
			log.Fatal(err)
		}
		found, err := status.Compute(object)
		if err != nil {
			log.Fatal(err)
		}
		line := map[string]string{"status": found.Status.String(), "message": found.Message}
		if err := out.Encode(line); err != nil {
			log.Fatal(err)
		}
	}
}
