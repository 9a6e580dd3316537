module crashtest/durable

go 1.19
