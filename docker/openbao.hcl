# OpenBao of docker-compose.yml. It starts sealed and opens itself with the key of its seal.
ui            = false
disable_mlock = true
api_addr      = "https://openbao:8200"
cluster_addr  = "https://openbao:8201"

storage "raft" {
  path                   = "/run/custody/data"
  node_id                = "openbao"
  performance_multiplier = 1
}

listener "tcp" {
  address       = "0.0.0.0:8200"
  tls_cert_file = "/run/custody/seal/server.crt"
  tls_key_file  = "/run/custody/seal/server.key"
}

# For one machine. In production: a key management service, an HSM, or the transit engine of another OpenBao.
seal "static" {
  current_key_id = "compose"
  current_key    = "file:///run/custody/seal/seal.key"
}

# What is asked, by whom, with the values as HMACs: docker compose logs openbao.
audit "file" "stdout" {
  options = {
    file_path = "stdout"
  }
}
