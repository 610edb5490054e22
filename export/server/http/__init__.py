"""The server towards its clients: sockets, connections, who is let in, bodies, routes, the stop."""
