// Sends one event to Seatmark: a seat was activated. Needs org.apache.kafka:kafka-clients.
//
//     java -cp 'jars/*' Produce.java 127.0.0.1:19092 entitlement-events

import java.time.Instant;
import java.util.Map;
import java.util.UUID;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.serialization.StringSerializer;

class Produce {
    public static void main(String[] arguments) throws Exception {
        // Acknowledged by all replicas, without repeats of its own, and with murmur2 of the key: the client's defaults.
        Map<String, Object> settings = Map.of("bootstrap.servers", arguments[0]);
        try (var producer = new KafkaProducer<>(settings, new StringSerializer(), new StringSerializer())) {
            String entitlement = "acme-cad";
            // In a program of yours a JSON library writes this. Where it is not known if an event arrived, send it again with
            // the same id and time: it counts once.
            String event = """
                {"specversion": "1.0", "id": "%s", "source": "/license-servers/eu-1", "type": "seat.activated",
                 "subject": "%s", "time": "%s",
                 "data": {"customer": "acme", "product": "cad", "seat_id": "wks-13", "user": "bob@example.com"}}
                """.formatted(UUID.randomUUID(), entitlement, Instant.now());
            // The key is the entitlement: its events stay in order.
            producer.send(new ProducerRecord<>(arguments[1], entitlement, event)).get();
        }
    }
}
