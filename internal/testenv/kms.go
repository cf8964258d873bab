package testenv

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
)

// KMS answers Encrypt and Decrypt as AWS KMS does, in the protocol JSON 1.1, with one symmetric key. There is no server of that
// kind to be had that could be run for a test.
type KMS struct {
	Endpoint string // URL
	KeyID    string // of the key
	Region   string

	mu    sync.Mutex
	calls map[string]int
	aead  cipher.AEAD
}

// What the service returns for a data key of 32 bytes has 184 bytes: here a name of the key, a nonce, the key, a tag.
const kmsHeader = 124

// StartKMS starts a service, which ends with t.
func StartKMS(t testing.TB) *KMS {
	t.Helper()
	var key [32]byte
	_, _ = rand.Read(key[:]) // never fails
	block, err := aes.NewCipher(key[:])
	if err != nil {
		t.Fatal(err)
	}
	k := &KMS{KeyID: "alias/archive", Region: "eu-central-1", calls: map[string]int{}}
	if k.aead, err = cipher.NewGCM(block); err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(http.HandlerFunc(k.serve))
	t.Cleanup(server.Close)
	k.Endpoint = server.URL
	return k
}

// Calls returns how often an operation ("Encrypt", "Decrypt") was asked for.
func (k *KMS) Calls(operation string) int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.calls[operation]
}

func (k *KMS) serve(w http.ResponseWriter, r *http.Request) {
	var in struct {
		KeyID      string `json:"KeyId"`
		Plaintext  []byte
		Ciphertext []byte `json:"CiphertextBlob"`
	}
	operation := strings.TrimPrefix(r.Header.Get("X-Amz-Target"), "TrentService.")
	k.mu.Lock()
	k.calls[operation]++
	k.mu.Unlock()
	refuse := func(class, message string) {
		w.Header().Set("Content-Type", "application/x-amz-json-1.1")
		w.WriteHeader(http.StatusBadRequest)
		_ = json.NewEncoder(w).Encode(map[string]string{"__type": class, "message": message}) // the client notices
	}
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
		refuse("ValidationException", err.Error())
		return
	}
	if !strings.Contains(r.Header.Get("Authorization"), "/"+k.Region+"/kms/") {
		refuse("AccessDeniedException", "the request is not signed for this region and service")
		return
	}
	out := map[string]any{"KeyId": "arn:aws:kms:" + k.Region + ":1:" + k.KeyID}
	switch operation {
	case "Encrypt":
		if in.KeyID != k.KeyID {
			refuse("NotFoundException", "Alias "+in.KeyID+" is not found.")
			return
		}
		blob := make([]byte, kmsHeader+k.aead.NonceSize())
		copy(blob, k.KeyID)
		_, _ = rand.Read(blob[kmsHeader:]) // never fails
		out["CiphertextBlob"] = k.aead.Seal(blob, blob[kmsHeader:], in.Plaintext, blob[:kmsHeader])
	case "Decrypt":
		var plain []byte
		if b := in.Ciphertext; len(b) > kmsHeader+k.aead.NonceSize() {
			nonce, sealed := b[kmsHeader:kmsHeader+k.aead.NonceSize()], b[kmsHeader+k.aead.NonceSize():]
			plain, _ = k.aead.Open(nil, nonce, sealed, b[:kmsHeader]) // nil if it does not
		}
		if plain == nil {
			refuse("InvalidCiphertextException", "")
			return
		}
		out["Plaintext"] = plain
	default:
		refuse("UnknownOperationException", operation)
		return
	}
	w.Header().Set("Content-Type", "application/x-amz-json-1.1")
	_ = json.NewEncoder(w).Encode(out) // the client notices
}
