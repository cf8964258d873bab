package testenv

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// Toxiproxy is a running toxiproxy: TCP proxies whose connections can be made slow, silent or broken (toxics).
type Toxiproxy struct {
	api string // URL
}

// Toxic is a fault of connections, as toxiproxy's HTTP API takes it.
type Toxic struct {
	// Type is "timeout" (nothing passes; after the attribute timeout, in ms, the connection is closed; 0: never), "latency"
	// (latency, jitter in ms), "bandwidth" (rate in KB/s), "slicer" (average_size, size_variation in bytes, delay in µs),
	// "limit_data" (bytes, then the connection is closed) or "reset_peer" (timeout in ms, then it is reset).
	Type string `json:"type"`
	// Stream is "upstream" (what the client sends) or "downstream" (what the server answers, the default).
	Stream string `json:"stream,omitempty"`
	// Toxicity is the share of connections that the fault meets; 0 stands for all of them.
	Toxicity   float64        `json:"toxicity,omitempty"`
	Attributes map[string]int `json:"attributes"`
}

const toxiproxyCallTimeout = 30 * time.Second

// StartToxiproxy starts a toxiproxy, which ends with t.
func StartToxiproxy(t testing.TB) *Toxiproxy {
	t.Helper()
	program := Tool(t, "toxiproxy-v2.5.0")
	port := freePort(t)
	x := &Toxiproxy{api: fmt.Sprintf("http://127.0.0.1:%d", port)}
	serve(t, exec.Command(program, "-host", "127.0.0.1", "-port", fmt.Sprint(port)), func(context.Context) error {
		_, err := x.try(http.MethodGet, "/version", nil)
		return err
	})
	return x
}

// ToxicProxy is one proxy: it listens on Address and passes connections on.
type ToxicProxy struct {
	Address string // 127.0.0.1:port
	Port    int

	t    testing.TB
	x    *Toxiproxy
	path string // in the API

	upstream string // host:port
}

// Proxy makes a proxy in front of the address to, which is host:port.
func (x *Toxiproxy) Proxy(t testing.TB, to string) *ToxicProxy {
	t.Helper()
	port := freePort(t)
	p := &ToxicProxy{Address: fmt.Sprintf("127.0.0.1:%d", port), Port: port, t: t, x: x}
	p.path, p.upstream = fmt.Sprintf("/proxies/proxy%d", port), to
	p.create()
	t.Cleanup(func() { x.call(t, http.MethodDelete, p.path, nil) })
	return p
}

// Add brings a fault on all connections, those that are open included. A second fault of the same type and stream is
// an error.
func (p *ToxicProxy) Add(f Toxic) {
	p.t.Helper()
	if f.Toxicity == 0 {
		f.Toxicity = 1
	}
	if f.Attributes == nil {
		f.Attributes = map[string]int{}
	}
	p.x.call(p.t, http.MethodPost, p.path+"/toxics", f)
}

// BlackHole lets connections be accepted, and nothing pass in either direction.
func (p *ToxicProxy) BlackHole() {
	p.t.Helper()
	p.Add(Toxic{Type: "timeout", Stream: "upstream"})
	p.Add(Toxic{Type: "timeout", Stream: "downstream"})
}

// Down closes all connections and refuses new ones.
func (p *ToxicProxy) Down() {
	p.t.Helper()
	p.x.call(p.t, http.MethodPost, p.path, map[string]any{"enabled": false})
}

// Mend ends all faults: open connections are closed, new ones pass. The proxy is made anew, since toxiproxy waits for the
// bytes on their way when a toxic is removed.
func (p *ToxicProxy) Mend() {
	p.t.Helper()
	p.x.call(p.t, http.MethodDelete, p.path, nil)
	p.create()
}

func (p *ToxicProxy) create() {
	p.t.Helper()
	p.x.call(p.t, http.MethodPost, "/proxies", map[string]any{
		"name": strings.TrimPrefix(p.path, "/proxies/"), "listen": p.Address, "upstream": p.upstream, "enabled": true,
	})
}

// call uses the API and returns its answer.
func (x *Toxiproxy) call(t testing.TB, method, path string, body any) []byte {
	t.Helper()
	answer, err := x.try(method, path, body)
	if err != nil {
		t.Fatalf("toxiproxy: %v", err)
	}
	return answer
}

func (x *Toxiproxy) try(method, path string, body any) ([]byte, error) {
	var content bytes.Buffer
	if body != nil {
		if err := json.NewEncoder(&content).Encode(body); err != nil {
			return nil, err
		}
	}
	req, err := http.NewRequest(method, x.api+path, &content)
	if err != nil {
		return nil, err
	}
	client := &http.Client{Timeout: toxiproxyCallTimeout}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode >= http.StatusBadRequest {
		return nil, fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, strings.TrimSpace(string(answer)))
	}
	return answer, nil
}
