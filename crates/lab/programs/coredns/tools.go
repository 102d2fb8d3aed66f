//go:build tools

// What the lab builds from this module: the server that most clusters run, as released.
package tools

import _ "github.com/coredns/coredns"
